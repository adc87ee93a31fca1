"""Who may open a WebSocket, how it is closed, and what it may cost."""

import asyncio
import socket
import time
from typing import Any

import pytest
from prometheus_client import REGISTRY
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from services.embedded.keys import mint
from services.realtime.hub import Frame, LiveEvent
from tests.faults.waiting import eventually
from tests.integration.realtime.conftest import Gateway, Open, Wire, narrow_socket
from tests.shop import Shop

LONG = "x" * 200


def lasting(shop: Shop, seconds: int) -> str:
    """A token of the buyer's that ends then."""
    return mint(
        shop.issuer_home,
        issuer=shop.settings.issuer_url,
        audience=shop.settings.audience,
        sub=str(shop.buyer),
        scope="orders:read",
        lifetime_seconds=seconds,
    )


async def test_a_token_that_is_missing_bad_or_expired_closes_with_4401(gateway: Gateway, shop: Shop) -> None:
    for protocols in (["orders.v1"], ["orders.v1", "bearer."], ["orders.v1", "bearer.x.y.z"]):
        assert await (await gateway.client(None, *protocols)).closed() == 4401
    client = await gateway.client(lasting(shop, -10))
    assert await client.closed() == 4401
    assert client.socket.close_reason == "The token has expired."


async def test_a_token_without_the_scope_closes_with_4403(gateway: Gateway, shop: Shop) -> None:
    assert await (await gateway.client(shop.token("orders:write"))).closed() == 4403


async def test_the_end_of_a_token_closes_with_4401_and_another_token_goes_on(gateway: Gateway, shop: Shop) -> None:
    order = await shop.placed()
    client = await gateway.client(lasting(shop, 2))
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.until(order["order_id"], 1)
    began = time.monotonic()
    assert await client.closed() == 4401
    assert time.monotonic() - began < 10
    await shop.command(order, "ship")
    again = await gateway.client()
    await again.ask(subscribe={"order_id": order["order_id"], "after_version": 1})
    assert await again.until(order["order_id"], 2) == [2]


async def refused(gateway: Gateway, path: str = "/v1/stream", *protocols: Any) -> InvalidStatus:
    with pytest.raises(InvalidStatus) as error:
        await connect(f"ws://127.0.0.1:{gateway.port}{path}", subprotocols=protocols or None)
    return error.value


async def test_another_path_or_protocol_is_refused_before_it_is_opened(gateway: Gateway, shop: Shop) -> None:
    token: Any = f"bearer.{shop.token()}"
    assert (await refused(gateway, "/v1/other", "orders.v1", token)).response.status_code == 404
    for protocols in ((), (token,), ("orders.v2", token)):
        error = await refused(gateway, "/v1/stream", *protocols)
        assert error.response.status_code == 400
        assert b'"code":"subprotocol_missing"' in (error.response.body or b"")


async def test_nobody_is_let_in_before_positions_are_known(opened: Open, shop: Shop) -> None:
    async with opened(kafka_url="127.0.0.1:1") as gateway:
        error = await refused(gateway, "/v1/stream", "orders.v1", f"bearer.{shop.token()}")
        assert error.response.status_code == 503
        assert error.response.headers["Retry-After"] == "1"
        ready = await shop.client.get(f"http://127.0.0.1:{gateway.port}/readyz")
        assert (ready.status_code, ready.json()["code"]) == (503, "unavailable")
        assert (await shop.client.get(f"http://127.0.0.1:{gateway.port}/healthz")).status_code == 200


async def test_one_more_than_a_gateway_takes_is_refused(opened: Open, shop: Shop) -> None:
    async with opened(sockets_max=2) as gateway:
        clients = [await gateway.client() for _ in range(2)]
        error = await refused(gateway, "/v1/stream", "orders.v1", f"bearer.{shop.token()}")
        assert error.response.status_code == 503
        await clients[0].socket.close()

        async def room() -> bool:
            return len(gateway.at.subscribers) < 2

        await eventually(room, "its place is free")
        assert "unsubscribed" in await (await gateway.client()).answered(unsubscribe={"all": True})


async def test_bad_messages_are_answered_and_change_nothing(gateway: Gateway, shop: Shop) -> None:
    order = await shop.placed()
    client = await gateway.client()
    for message, code in (
        ("{", "malformed_json"),
        ("[]", "invalid"),
        (b"{}", "invalid"),
        ('{"subscribe": {"order_id": "x"}}', "invalid"),
    ):
        await client.socket.send(message)
        problem = (await client.take())["error"]
        assert (problem["code"], problem["type"]) == (code, f"urn:problem:{code}")
        assert problem["instance"] == "/v1/stream"
    assert problem["errors"][0]["at"] == "/order_id"
    await client.ask(subscribe={"order_id": order["order_id"]})
    assert await client.until(order["order_id"], 1) == [1]


async def test_a_message_that_is_too_long_closes_with_1009(gateway: Gateway) -> None:
    client = await gateway.client()
    await client.socket.send('"' + "x" * 64 * 1024 + '"')
    assert await client.closed() == 1009


async def test_more_orders_than_one_socket_may_follow_are_refused(opened: Open, shop: Shop) -> None:
    async with opened(orders_max=2) as gateway:
        client = await gateway.client()
        orders = [(await shop.placed())["order_id"] for _ in range(3)]
        for order_id in orders[:2]:
            await client.ask(subscribe={"order_id": order_id})
            await client.until(order_id, 1)
        answer = await client.answered(subscribe={"order_id": orders[2]})
        assert answer["error"]["code"] == "too_many_subscriptions"
        await client.answered(unsubscribe={"order_id": orders[0]})
        await client.ask(subscribe={"order_id": orders[2]})
        assert await client.until(orders[2], 1) == [1]


async def test_deflate_is_off_even_when_it_is_offered(gateway: Gateway, shop: Shop) -> None:
    protocols: Any = ["orders.v1", f"bearer.{shop.token()}"]
    async with connect(f"ws://127.0.0.1:{gateway.port}/v1/stream", subprotocols=protocols) as client:
        assert client.response is not None
        assert "Sec-WebSocket-Extensions" not in client.response.headers


async def test_an_idle_socket_is_pinged_and_one_that_never_answers_is_closed(opened: Open, shop: Shop) -> None:
    async with opened(ping_seconds=0.2) as gateway:
        alive = await gateway.client()
        protocols: Any = ["orders.v1", f"bearer.{shop.token()}"]
        silent = await connect(f"ws://127.0.0.1:{gateway.port}/v1/stream", subprotocols=protocols)
        silent.transport.pause_reading()  # what comes is not even seen, so nothing answers it

        async def one_is_gone() -> bool:
            return len(gateway.at.subscribers) == 1

        await eventually(one_is_gone, "the silent one is gone")
        assert "unsubscribed" in await alive.answered(unsubscribe={"all": True})
        silent.transport.abort()


async def orders_of_size(shop: Shop, count: int) -> list[str]:
    """Orders whose first event has some 45 KB."""
    products = [await shop.product(name=LONG, stock=10_000) for _ in range(3)]
    lines = [(products[number % 3], 1) for number in range(120)]
    return [(await shop.placed(*lines))["order_id"] for _ in range(count)]


async def test_a_slow_reader_is_closed_with_4408_and_resumes_without_a_gap(
    opened: Open, shop: Shop, wire: Wire
) -> None:
    async with opened(queue_messages=20) as gateway:
        narrow = narrow_socket(gateway.port)
        slow = await gateway.client(None, sock=narrow, max_queue=1)
        quick = await gateway.client()
        for client in (slow, quick):
            await client.answered(subscribe={"all": True})
        slow.socket.transport.pause_reading()
        orders = await orders_of_size(shop, 40)
        for order_id in orders:
            await wire.publish(order_id, 1)
            await quick.until(order_id, 1)  # nobody else waits for a slow one
        assert quick.socket.state.name == "OPEN"
        slow.socket.transport.resume_reading()
        assert await slow.closed() == 4408
        had = [event["order_id"] for event in slow.events]
        assert 0 < len(had) < len(orders)
        assert set(slow.had) <= set(orders)
        again = await gateway.client()
        after = dict.fromkeys(orders, 0) | dict.fromkeys(had, 1)
        await again.answered(subscribe={"all": True, "after": after})
        for order_id in orders:
            if order_id not in had:
                assert await again.until(order_id, 1) == [1]
        assert set(again.had) == set(orders) - set(had)


async def test_a_backlog_waits_for_a_slow_reader_instead_of_closing_it(opened: Open, shop: Shop) -> None:
    async with opened(queue_messages=4) as gateway:
        orders = await orders_of_size(shop, 30)
        client = await gateway.client(None, sock=narrow_socket(gateway.port), max_queue=1)
        await client.ask(subscribe={"all": True, "after": dict.fromkeys(orders, 0)})
        for order_id in orders:
            assert await client.until(order_id, 1) == [1]
        assert client.socket.close_code is None


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
async def test_a_client_that_takes_nothing_at_all_is_cut_off(opened: Open, shop: Shop, wire: Wire) -> None:
    async with opened(queue_messages=4, stalled_seconds=1.0) as gateway:
        dead = await gateway.client(None, sock=narrow_socket(gateway.port), max_queue=1)
        await dead.answered(subscribe={"all": True})
        dead.socket.transport.pause_reading()
        for order_id in await orders_of_size(shop, 30):
            await wire.publish(order_id, 1)

        async def cut_off() -> bool:
            return not gateway.at.subscribers

        await eventually(cut_off, "it is gone", seconds=30)
        dead.socket.transport.abort()


async def test_a_restart_closes_with_1012_and_clients_resume(opened: Open, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    async with opened() as gateway:
        client = await gateway.client()
        await client.ask(subscribe={"order_id": order["order_id"]})
        await client.until(order["order_id"], 1)
    assert await client.closed() == 1012
    order = (await shop.command(order, "ship")).json()
    await wire.publish(order["order_id"], 2)  # while no gateway runs
    async with opened() as gateway:
        again = await gateway.client()
        await again.ask(subscribe={"order_id": order["order_id"], "after_version": client.had[order["order_id"]][-1]})
        order = (await shop.command(order, "deliver")).json()
        await wire.publish(order["order_id"], 3)
        assert await again.until(order["order_id"], 3) == [2, 3]


async def test_lost_positions_close_every_socket_with_1012(gateway: Gateway) -> None:
    clients = [await gateway.client() for _ in range(3)]
    for client in clients:
        await client.answered(subscribe={"all": True})
    gateway.at.restart()
    assert [await client.closed() for client in clients] == [1012] * 3


async def test_what_cannot_be_sent_closes_with_1011_and_the_client_resumes(
    gateway: Gateway, shop: Shop, wire: Wire
) -> None:
    order = await shop.placed()
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.until(order["order_id"], 1)
    (subscriber,) = gateway.at.subscribers
    # Half a character, which has no UTF-8: nothing that is read has one, so it is put in by hand.
    subscriber.live(LiveEvent(order["order_id"], 2, None, Frame("\ud83e", 1)))
    assert await client.closed() == 1011
    assert client.socket.close_reason == "This is our fault, and it has been logged."
    await shop.command(order, "ship")
    await wire.publish(order["order_id"], 2)
    again = await gateway.client()
    await again.ask(subscribe={"order_id": order["order_id"], "after_version": 1})
    assert await again.until(order["order_id"], 2) == [2]

    async def gone() -> bool:
        return len(gateway.at.subscribers) == 1

    await eventually(gone, "its place is free")


async def test_what_a_client_leaves_behind_is_nothing(gateway: Gateway, shop: Shop) -> None:
    order = await shop.placed()
    before = REGISTRY.get_sample_value("realtime_subscriptions")
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.ask(subscribe={"all": True})
    await client.until(order["order_id"], 1)
    client.socket.transport.abort()

    async def gone() -> bool:
        hub = gateway.at.hub
        return not (gateway.at.subscribers or hub._of_order or hub._of_user)

    await eventually(gone, "no subscriber, no registration")
    assert REGISTRY.get_sample_value("realtime_subscriptions") == before
    tasks = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert not [name for name in tasks if name.startswith("Subscriber.")]


async def test_the_page_is_served_with_a_policy_that_runs_its_own_script_only(gateway: Gateway, shop: Shop) -> None:
    page = await shop.client.get(f"http://127.0.0.1:{gateway.port}/")
    assert page.status_code == 200
    assert "'unsafe" not in page.headers["content-security-policy"]
    assert page.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    described = (await shop.client.get(f"http://127.0.0.1:{gateway.port}/openapi.json")).json()
    assert set(described["paths"]) == {"/healthz", "/readyz", "/v1/status"}
