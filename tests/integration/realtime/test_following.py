"""Every version once and in order, whatever comes on Kafka and when."""

import asyncio
import uuid
from typing import Any

import orjson
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common.calls import FAILURES
from services.common.stream import Message
from services.orders import api as orders_api
from tests.conftest import free_port
from tests.faults.waiting import eventually
from tests.integration.realtime.conftest import ALL, Gateway, Open, Wire
from tests.serving import serving
from tests.shop import Shop

OTHER = "00000000-0000-4000-8000-000000000001"


async def delivered(shop: Shop, **body: Any) -> dict[str, Any]:
    """An order of three versions."""
    order = await shop.placed(**body)
    for name in ("ship", "deliver"):
        order = (await shop.command(order, name)).raise_for_status().json()
    return order


async def stored(shop: Shop, order_id: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (
        await shop.client.get(f"/v1/orders/{order_id}/events", headers=shop.auth(ALL))
    ).json()["data"]
    return events


async def test_what_was_before_comes_first_and_then_what_happens(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    client = await gateway.client()
    assert client.socket.subprotocol == "orders.v1"
    answer = await client.answered(subscribe={"order_id": order["order_id"]})
    assert answer == {"subscribed": {"order_id": order["order_id"], "after_version": 0}}
    await client.until(order["order_id"], 1)
    order = (await shop.command(order, "ship")).json()
    await wire.publish(order["order_id"], 1, 2)
    order = (await shop.command(order, "deliver")).json()
    await wire.publish(order["order_id"], 3)
    assert await client.until(order["order_id"], 3) == [1, 2, 3]
    assert client.events == await stored(shop, order["order_id"]), "an event is what the API says it is"


async def test_it_goes_on_after_the_version_that_is_named(gateway: Gateway, shop: Shop) -> None:
    order = await delivered(shop)
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"], "after_version": 2})
    assert await client.until(order["order_id"], 3) == [3]


async def test_duplicates_and_old_events_are_not_sent_again(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order, marker = await delivered(shop), await shop.placed()
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"], "after_version": 1})
    await client.until(order["order_id"], 3)
    await wire.publish(order["order_id"], 1, 2, 1, 2, 3, 2, 3)
    await wire.read_by(gateway)
    await client.ask(subscribe={"order_id": marker["order_id"]})
    await client.until(marker["order_id"], 1)
    assert client.had[order["order_id"]] == [2, 3]


async def test_a_gap_in_the_live_feed_is_filled(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.until(order["order_id"], 1)
    for name in ("ship", "deliver", "return"):
        order = (await shop.command(order, name)).json()
    await wire.publish(order["order_id"], 4)
    assert await client.until(order["order_id"], 4) == [1, 2, 3, 4]


async def test_an_order_with_more_events_than_a_page_comes_whole(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    product = await shop.product(stock=1000)
    order = await shop.placed((product, 450))
    for _ in range(430):
        order = (await shop.command(order, "ship", {"items": [{"line_no": 1, "quantity": 1}]})).json()
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"]})
    await wire.publish(order["order_id"], *range(200, 432))
    assert await client.until(order["order_id"], 431) == list(range(1, 432))


async def test_messages_that_cannot_be_read_lose_nothing(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    client = await gateway.client()
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.until(order["order_id"], 1)
    order = (await shop.command(order, "ship")).json()
    wrong = {"order_id": order["order_id"], "version": 7}
    await wire.send(
        Message(b"\xff", b"?", []),
        Message(order["order_id"].encode(), b"{}", [("ce_sequence", b"two")]),
        wire.message(order["order_id"], 2, b"not JSON", {}),
        wire.message(order["order_id"], 2, orjson.dumps(wrong), {}),
    )
    assert await client.until(order["order_id"], 2) == [1, 2]
    order = (await shop.command(order, "deliver")).json()
    await wire.publish(order["order_id"], 3)
    assert await client.until(order["order_id"], 3) == [1, 2, 3]


async def test_missing_and_foreign_orders_are_refused_as_the_api_refuses_them(gateway: Gateway, shop: Shop) -> None:
    foreign = await shop.placed()
    stranger = shop.token("orders:read", sub=OTHER)
    client = await gateway.client(stranger)
    for order_id in (foreign["order_id"], "01JD5Q0000E2WXGF4K4Z7D3M5T", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"):
        refused = await shop.client.get(
            f"/v1/orders/{order_id}/events", headers={"Authorization": f"Bearer {stranger}"}
        )
        assert refused.status_code == 404
        assert await client.answered(subscribe={"order_id": order_id}) == {"error": refused.json()}
    own = await shop.client.get(f"/v1/orders/{foreign['order_id']}", headers=shop.auth())
    assert own.status_code == 200


async def test_a_refused_order_sends_nothing_later(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    foreign = await shop.placed()
    client = await gateway.client(shop.token("orders:read", sub=OTHER))
    assert "error" in await client.answered(subscribe={"order_id": foreign["order_id"]})
    await wire.publish(foreign["order_id"], 1)
    await wire.read_by(gateway)
    assert "unsubscribed" in await client.answered(unsubscribe={"all": True})
    assert client.events == []


async def test_staff_may_follow_anybody_s_order(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    client = await gateway.client(shop.token(ALL, sub=OTHER))
    await client.ask(subscribe={"order_id": order["order_id"]})
    await client.until(order["order_id"], 1)
    order = (await shop.command(order, "ship")).json()
    await wire.publish(order["order_id"], 2)
    assert await client.until(order["order_id"], 2) == [1, 2]


async def test_all_of_one_s_own_orders_and_of_nobody_else(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    known, unknown = await delivered(shop), await shop.placed()
    stranger = Shop(shop.client, shop.settings, shop.issuer_home, shop.owner)
    foreign = await stranger.placed()
    client = await gateway.client()
    after = {known["order_id"]: 1, foreign["order_id"]: 0}
    assert await client.answered(subscribe={"all": True, "after": after}) == {"subscribed": {"all": True}}
    await client.until(known["order_id"], 3)
    refused = next(one for one in [*client.told[1:], await _told(client)] if "error" in one)
    assert refused["error"]["code"] == "not_found"
    assert foreign["order_id"] in refused["error"]["instance"]
    unknown = (await shop.command(unknown, "ship")).json()
    new = await shop.placed()
    await wire.publish(foreign["order_id"], 1)
    await wire.publish(unknown["order_id"], 2)
    await wire.publish(new["order_id"], 1)
    await client.until(new["order_id"], 1)
    await client.until(unknown["order_id"], 2)
    await wire.read_by(gateway)
    assert client.had == {known["order_id"]: [2, 3], unknown["order_id"]: [2], new["order_id"]: [1]}
    # A gap of one that began with its next event is filled, too.
    for name in ("deliver", "return"):
        unknown = (await shop.command(unknown, name)).json()
    await wire.publish(unknown["order_id"], 4)
    assert await client.until(unknown["order_id"], 4) == [2, 3, 4]


async def _told(client: Any) -> dict[str, Any]:
    """The error, when it comes after the events."""
    if len(client.told) > 1:
        found: dict[str, Any] = client.told[1]
        return found
    while "version" in (message := await client.take()):
        pass
    return dict(message)


async def test_staff_who_name_a_foreign_order_among_their_own_are_refused_that_one(
    gateway: Gateway, shop: Shop
) -> None:
    foreign = await shop.placed()
    client = await gateway.client(shop.token(ALL, sub=OTHER))
    await client.ask(subscribe={"all": True, "after": {foreign["order_id"]: 0}})
    assert "subscribed" in await client.take()
    refused = await client.take()
    assert (refused["error"]["code"], client.events) == ("not_found", [])


async def test_an_order_that_is_followed_twice_is_sent_once(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    one = {"order_id": order["order_id"]}
    client = await gateway.client()
    await client.ask(subscribe=one)
    await client.ask(subscribe=one)
    await client.ask(subscribe={"all": True, "after": {order["order_id"]: 0}})
    await client.until(order["order_id"], 1)
    order = (await shop.command(order, "ship")).json()
    await wire.publish(order["order_id"], 1, 2)
    await client.until(order["order_id"], 2)
    assert await client.answered(subscribe=one) == {"subscribed": {**one, "after_version": 2}}
    assert client.had[order["order_id"]] == [1, 2]
    # Either subscription alone goes on with it.
    await client.answered(unsubscribe=one)
    order = (await shop.command(order, "deliver")).json()
    await wire.publish(order["order_id"], 3)
    assert await client.until(order["order_id"], 3) == [1, 2, 3]


async def test_nothing_comes_of_what_is_unsubscribed(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    order, other = await shop.placed(), await shop.placed()
    client = await gateway.client()
    for one in (order, other):
        await client.ask(subscribe={"order_id": one["order_id"]})
        await client.until(one["order_id"], 1)
    gone = {"order_id": order["order_id"]}
    assert await client.answered(unsubscribe=gone) == {"unsubscribed": gone}
    assert await client.answered(unsubscribe=gone) == {"unsubscribed": gone}, "twice is as good as once"
    for one in (order, other):
        await shop.command(one, "ship")
        await wire.publish(one["order_id"], 2)
    await wire.read_by(gateway)
    await client.until(other["order_id"], 2)
    assert client.had[order["order_id"]] == [1]
    # And it can be followed anew.
    await client.ask(subscribe={**gone, "after_version": 1})
    assert await client.until(order["order_id"], 2) == [1, 2]


async def test_two_gateways_side_by_side_send_the_same(opened: Open, shop: Shop, wire: Wire) -> None:
    order = await shop.placed()
    async with opened() as first, opened() as second:
        clients = [await first.client(), await second.client()]
        for client in clients:
            await client.ask(subscribe={"order_id": order["order_id"]})
        for name in ("ship", "deliver"):
            order = (await shop.command(order, name)).json()
            await wire.publish(order["order_id"], order["version"])
        for client in clients:
            assert await client.until(order["order_id"], 3) == [1, 2, 3]
        assert clients[0].events == clients[1].events


async def test_subscriptions_wait_for_orders_api_and_live_events_do_not(opened: Open, shop: Shop, wire: Wire) -> None:
    from services.orders import api as orders_api

    order, other = await shop.placed(), await shop.placed()
    async with serving(orders_api.create_app(shop.settings)) as port:
        pass  # a port that nobody listens on any more
    async with opened(orders_url=f"http://127.0.0.1:{port}") as gateway:
        client = await gateway.client()
        await client.answered(subscribe={"all": True})
        await client.ask(subscribe={"order_id": order["order_id"]})
        await shop.command(other, "ship")
        await wire.publish(other["order_id"], 2)
        assert await client.until(other["order_id"], 2) == [2]
        assert [one for one in client.told if one["subscribed"] != {"all": True}] == []
        async with serving(orders_api.create_app(shop.settings), port=port):
            assert await client.until(order["order_id"], 1) == [1]
            assert {"order_id": order["order_id"], "after_version": 0} in [one["subscribed"] for one in client.told]


async def test_many_orders_of_many_clients_at_once(gateway: Gateway, shop: Shop, wire: Wire) -> None:
    product = await shop.product(stock=10_000)
    orders = [await shop.placed((product, 6)) for _ in range(6)]
    clients = [await gateway.client() for _ in range(8)]

    async def follow(number: int) -> None:
        client = clients[number]
        for order in orders:
            await client.ask(subscribe={"order_id": order["order_id"], "after_version": number % 2})
        for order in orders:
            expected = list(range(1 + number % 2, 8))
            assert await client.until(order["order_id"], 7) == expected

    async def happen(order: dict[str, Any]) -> None:
        for version in range(2, 8):
            part = {"items": [{"line_no": 1, "quantity": 1}]}
            order = (await shop.command(order, "ship", part)).json()
            await wire.publish(order["order_id"], version)

    async with asyncio.TaskGroup() as group:
        for number in range(len(clients)):
            group.create_task(follow(number))
        for order in orders:
            group.create_task(happen(order))


async def test_while_orders_api_is_dead_subscriptions_wait_the_others_go_on_and_nothing_is_lost(
    opened: Open, shop: Shop, wire: Wire
) -> None:
    followed, wanted = await shop.placed(), await delivered(shop)
    port = free_port()  # of another orders-api, which the gateway asks
    async with opened(orders_url=f"http://127.0.0.1:{port}") as gateway:
        client = await gateway.client()
        async with serving(orders_api.create_app(shop.settings), port=port):
            await client.ask(subscribe={"order_id": followed["order_id"]})
            await client.until(followed["order_id"], 1)
        waiting = [await gateway.client() for _ in range(10)]
        for one in waiting:
            await one.ask(subscribe={"order_id": wanted["order_id"]})

        async def degraded() -> bool:
            answer = await shop.client.get(f"http://127.0.0.1:{gateway.port}/readyz")
            assert answer.status_code == 200
            return "orders-api does not answer: it is left alone" in answer.json()["warnings"]

        await eventually(degraded, "the gateway says so")
        for name in ("ship", "deliver"):
            followed = (await shop.command(followed, name)).raise_for_status().json()
        await wire.publish(followed["order_id"], 2)
        assert await client.until(followed["order_id"], 2) == [1, 2], "what was followed before goes on"
        await wire.publish(wanted["order_id"], 3)  # which comes live while what is before it is not to be had
        await wire.read_by(gateway)
        assert not any(one.told or one.events for one in waiting)
        async with serving(orders_api.create_app(shop.settings), port=port):
            for one in waiting:
                assert await one.until(wanted["order_id"], 3) == [1, 2, 3]
                assert one.told == [{"subscribed": {"order_id": wanted["order_id"], "after_version": 0}}]
            await wire.publish(followed["order_id"], 3)
            assert await client.until(followed["order_id"], 3) == [1, 2, 3]
            assert gateway.at.breakers[0].state == "closed"


class Limiting:
    """An application that refuses what comes with one token, as orders-api does whom it limits, until it is lifted."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token
        self.refused, self.lifted = 0, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        bearer = f"Bearer {self._token}".encode()
        if scope["type"] == "http" and dict(scope["headers"])[b"authorization"] == bearer and not self.lifted:
            self.refused += 1
            problem = {"code": "rate_limited", "status": 429, "detail": "Too many requests."}
            app = JSONResponse(problem, 429, headers={"Retry-After": "1"})
        await app(scope, receive, send)


async def test_a_user_who_is_limited_waits_and_nobody_else_does(opened: Open, shop: Shop) -> None:
    order, own = await shop.placed(), await shop.placed()
    greedy = shop.token(ALL, sub=str(uuid.uuid4()))
    limiting = Limiting(orders_api.create_app(shop.settings), greedy)
    async with serving(limiting) as port, opened(orders_url=f"http://127.0.0.1:{port}") as gateway:
        crowd = [await gateway.client(greedy) for _ in range(2 * FAILURES)]
        for one in crowd:
            await one.ask(subscribe={"order_id": order["order_id"]})

        async def all_refused() -> bool:
            return limiting.refused >= len(crowd)

        await eventually(all_refused, "each was refused")
        assert gateway.at.breakers[0].state == "closed"
        other = await gateway.client()
        await other.ask(subscribe={"order_id": own["order_id"]})
        assert await other.until(own["order_id"], 1) == [1]
        limiting.lifted = True
        for one in crowd:
            assert await one.until(order["order_id"], 1) == [1]
            assert one.told == [{"subscribed": {"order_id": order["order_id"], "after_version": 0}}]
