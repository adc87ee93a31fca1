"""What every route owes: who may, what is checked first, what a refusal looks like, what every response carries."""

import asyncio
import secrets
import socket
import time
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.common import clock, ids
from services.common.outbox import TIMEOUT_SECONDS
from services.orders.settings import OrdersSettings
from tests.contracts.description import refused
from tests.integration.orders.conftest import OpenShop
from tests.shop import Shop, opened_shop

HUGE = b" " * (256 * 1024 + 1)
GOOD_ID = ids.to_text(ids.new_order_key(uuid.uuid4(), clock.now()).order_id)
COMMANDS = ("cancel", "ship", "deliver", "return")
GUARDED = [
    ("POST", "/v1/orders"),
    ("GET", "/v1/orders"),
    ("GET", f"/v1/orders/{GOOD_ID}"),
    ("GET", f"/v1/orders/{GOOD_ID}/events"),
    *(("POST", f"/v1/orders/{GOOD_ID}/{command}") for command in COMMANDS),
    ("POST", f"/v1/inventory/{GOOD_ID}/adjustments"),
    ("GET", f"/v1/inventory/{GOOD_ID}"),
]


async def post(
    shop: Shop,
    path: str = "/v1/orders",
    content: bytes = b"{}",
    *,
    scope: str = "orders:write",
    sub: uuid.UUID | None = None,
    **headers: str | None,
) -> httpx.Response:
    """POST with a key and as JSON, unless a header says otherwise (None: leave it out); `if_match` is If-Match."""
    sent: dict[str, str | None] = {
        "authorization": shop.auth(scope, sub=sub)["Authorization"],
        "idempotency-key": secrets.token_hex(8),
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    return await shop.client.post(path, content=content, headers={k: v for k, v in sent.items() if v is not None})


def statements_sent(response: httpx.Response) -> bool:
    """Whether the request has spent time in the database."""
    return not response.headers["server-timing"].startswith("db;dur=0.000")


async def test_without_a_token_nothing_else_of_the_request_matters(shop: Shop) -> None:
    for method, path in GUARDED:
        for token in (None, "Bearer x.y.z", "Basic eDp5"):
            headers = {"Authorization": token} if token else {}
            response = await shop.client.request(method, path, content=HUGE, headers=headers)
            assert refused(response) == "401 unauthenticated"
            assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_without_the_scope_is_refused_before_anything_is_read(shop: Shop) -> None:
    for method, path in GUARDED[:-1]:
        response = await shop.client.request(method, path, content=HUGE, headers=shop.auth("profile"))
        assert refused(response) == "403 scope_missing"
        assert response.json()["required"]
    assert refused(await shop.client.get(f"/v1/inventory/{GOOD_ID}", headers=shop.auth(""))) == "404 not_found"


async def test_what_needs_a_further_scope_is_refused_before_the_body_is_judged(shop: Shop) -> None:
    stranger = str(uuid.uuid4())
    for body in (b'{"adjustments": []}', b'{"user_id": "%s"}' % stranger.encode(), b'{"adjustments": 1, "x": 1}'):
        response = await post(shop, content=body)
        assert refused(response) == "403 scope_missing"
        assert response.json()["required"] == ["orders:price"]
    assert refused(await post(shop, content=b'{"adjustments": null, "user_id": null}')) == "422 invalid"
    order = await shop.placed()
    for reason in ("staff", "out_of_stock"):
        response = await shop.command(order, "cancel", {"reason": reason, "x": 1}, scope="orders:write")
        assert refused(response) == "403 scope_missing"
    assert refused(await shop.get("/v1/orders", user_id=stranger, limit=0)) == "403 scope_missing"
    assert (await shop.get("/v1/orders", user_id=str(shop.buyer))).status_code == 200
    assert (await shop.get("/v1/orders", scope="orders:read orders:read:any", user_id=stranger)).json()["data"] == []


async def test_size_media_type_key_syntax_and_content_are_checked_in_this_order(shop: Shop) -> None:
    for path in ("/v1/orders", *(f"/v1/orders/{GOOD_ID}/{command}" for command in COMMANDS)):
        scope = "orders:write orders:fulfil"

        async def verdict(content: bytes, path: str = path, scope: str = scope, **headers: Any) -> str:
            return refused(await post(shop, path, content, scope=scope, **headers))

        assert await verdict(HUGE, content_type="text/plain", idempotency_key=None) == "413 body_too_large"
        assert await verdict(b"{", content_type="text/plain", idempotency_key=None) == "415 media_type"
        assert await verdict(b"{", content_type=None) == "415 media_type"
        assert await verdict(b"{", idempotency_key=None) == "400 key_missing"
        assert await verdict(b"{") == "400 malformed_json"
        assert await verdict(b"[]") == "422 invalid"
        assert await verdict(b'{"x": 1}', idempotency_key=None) == "400 key_missing"
        assert await verdict(b" " * (256 * 1024), idempotency_key="k") == "400 malformed_json"


async def test_a_body_is_json_by_its_media_type_whatever_its_parameters_and_case(shop: Shop) -> None:
    for media_type in ("application/json; charset=utf-8", "Application/JSON"):
        assert refused(await post(shop, content=b"{}", content_type=media_type)) == "422 invalid"


async def test_impossible_ids_are_not_found_without_a_statement(shop: Shop) -> None:
    now = clock.now()
    impossible = [
        "x",
        "0" * 26,
        "I" * 26,
        "7" + "Z" * 25,
        "8" + "0" * 25,
        GOOD_ID + "0",
        GOOD_ID[:-1] + "\u017f",  # its upper case is an S
        str(uuid.uuid4()),
        ids.to_text(uuid.uuid4()),
        ids.to_text(ids.new_order_key(shop.buyer, now + timedelta(seconds=12)).order_id),
        ids.to_text(ids.new_order_key(shop.buyer, now + timedelta(days=36_500)).order_id),
        ids.to_text(ids.new_order_key(shop.buyer, now - timedelta(days=100)).order_id),
        ids.to_text(ids.new_order_key(shop.buyer, clock.EPOCH).order_id),
    ]
    for text in impossible:
        for path in (f"/v1/orders/{text}", f"/v1/orders/{text}/events"):
            response = await shop.get(path)
            assert refused(response) == "404 not_found", text
            assert not statements_sent(response), text
        for command in COMMANDS:
            response = await post(shop, f"/v1/orders/{text}/{command}", scope="orders:fulfil")
            assert refused(response) == "404 not_found", text
            assert not statements_sent(response), text
    for text in impossible[:2] + impossible[4:7]:
        response = await shop.get(f"/v1/inventory/{text}")
        assert refused(response) == "404 not_found", text
        assert statements_sent(response) == (text == "0" * 26), text


async def test_an_id_of_a_clock_a_little_ahead_is_looked_up(shop: Shop) -> None:
    ahead = ids.to_text(ids.new_order_key(shop.buyer, clock.now() + timedelta(seconds=5)).order_id)
    response = await shop.get(f"/v1/orders/{ahead}")
    assert refused(response) == "404 not_found"
    assert statements_sent(response)


async def test_a_foreign_order_is_refused_as_a_missing_one_byte_for_byte_but_for_instance(shop: Shop) -> None:
    order = await shop.placed()
    stranger = uuid.uuid4()
    foreign, missing = order["order_id"], GOOD_ID
    calls = [("GET", "", "orders:read"), ("GET", "/events", "orders:read"), ("POST", "/cancel", "orders:write")]
    for method, rest, scope in calls:
        answers = []
        for order_id in (foreign, missing, "nonsense"):
            headers = {**shop.auth(scope, sub=stranger), "Idempotency-Key": "k", "If-Match": '"1"'}
            response = await shop.client.request(method, f"/v1/orders/{order_id}{rest}", headers=headers)
            assert refused(response) == "404 not_found"
            assert response.json()["instance"] == f"/v1/orders/{order_id}{rest}"
            kept = {k: v for k, v in response.headers.items() if k not in ("server-timing", "x-request-id")}
            answers.append((response.content.replace(order_id.encode(), b"-"), {**kept, "content-length": "-"}))
        assert answers[0] == answers[1] == answers[2]
    assert (await shop.get(f"/v1/orders/{foreign}")).json()["version"] == 1


async def test_a_reader_of_any_and_only_such_a_one_sees_foreign_orders(shop: Shop) -> None:
    order = await shop.placed()
    for rest in ("", "/events"):
        headers = shop.auth("orders:read orders:read:any", sub=uuid.uuid4())
        assert (await shop.client.get(f"/v1/orders/{order['order_id']}{rest}", headers=headers)).status_code == 200
        headers = shop.auth("orders:read orders:fulfil orders:price", sub=uuid.uuid4())
        response = await shop.client.get(f"/v1/orders/{order['order_id']}{rest}", headers=headers)
        assert refused(response) == "404 not_found"
    headers = shop.auth("orders:read:any", sub=uuid.uuid4())
    assert refused(await shop.client.get(f"/v1/orders/{order['order_id']}", headers=headers)) == "403 scope_missing"


async def test_what_no_route_serves_is_a_problem_too(shop: Shop) -> None:
    for path in ("/", "/v1", "/v2/orders", "/v1/orders/", f"/v1/orders/{GOOD_ID}/", f"/v1/orders/{GOOD_ID}/refund"):
        response = await shop.client.get(path, headers={"Host": "elsewhere.example"})
        assert refused(response) == "404 not_found", path
    for method, path, allowed in (
        ("DELETE", "/v1/orders", "GET, POST"),
        ("PUT", f"/v1/orders/{GOOD_ID}", "GET"),
        ("GET", f"/v1/orders/{GOOD_ID}/cancel", "POST"),
        ("POST", f"/v1/inventory/{GOOD_ID}", "GET"),
        ("GET", f"/v1/inventory/{GOOD_ID}/adjustments", "POST"),
        ("POST", "/healthz", "GET"),
    ):
        response = await shop.client.request(method, path)
        assert refused(response) == "405 method_not_allowed"
        assert response.headers["allow"] == allowed


async def test_instance_is_a_uri_reference_whatever_the_path(shop: Shop) -> None:
    response = await shop.get("/v1/orders/a%20b%22%C3%A9%3Fx%23y")
    assert refused(response) == "404 not_found"
    assert response.json()["instance"] == "/v1/orders/a%20b%22%C3%A9%3Fx%23y"


async def test_every_response_carries_timings_a_request_id_and_no_leave_to_store_it(shop: Shop) -> None:
    order = await shop.placed()
    responses = [
        await shop.client.get("/healthz"),
        await shop.client.get("/readyz"),
        await shop.client.get("/openapi.json"),
        await shop.client.get("/nowhere"),
        await shop.client.delete("/v1/orders"),
        await shop.client.get("/v1/orders"),
        await shop.get(f"/v1/orders/{order['order_id']}"),
        await shop.client.get(
            f"/v1/orders/{order['order_id']}", headers={**shop.auth(), "If-None-Match": '"1"', "X-Request-Id": "mine"}
        ),
    ]
    for response in responses:
        assert response.headers["server-timing"].startswith("db;dur=")
        assert "pool;dur=" in response.headers["server-timing"]
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
    assert len({response.headers["x-request-id"] for response in responses}) == len(responses)
    assert responses[-1].headers["x-request-id"] == "mine"


async def test_what_was_refused_is_not_remembered(shop: Shop) -> None:
    product = await shop.product(stock=0, price=5)
    tries: list[tuple[tuple[str, int], dict[str, Any], str]] = [
        ((product, 1), {}, "409 out_of_stock"),
        ((product, 1), {"currency": "EUR"}, "409 currency_mismatch"),
        ((GOOD_ID, 1), {}, "409 product_unknown"),
        ((product, 0), {}, "422 invalid"),
    ]
    for line, body, expected in tries:
        assert refused(await shop.place(line, key="k", **body)) == expected
    assert await shop.owner.fetchval("SELECT count(*) FROM orders.idempotency_keys") == 0
    await shop.owner.execute("UPDATE orders.inventory SET on_hand = 1")
    response = await shop.place((product, 1), key="k")
    assert response.status_code == 201
    order = response.json()
    assert refused(await shop.command(order, "ship", key="s", if_match='"2"')) == "412 version_mismatch"
    assert refused(await shop.command(order, "ship", {"x": 1}, key="s")) == "422 invalid"
    assert refused(await shop.command(order, "deliver", key="s")) == "409 transition_not_allowed"
    assert await shop.owner.fetchval("SELECT count(*) FROM orders.idempotency_keys") == 1
    assert (await shop.command(order, "ship", key="s")).status_code == 200


@pytest.mark.parametrize("held", ["orders.inventory", "orders.orders"])
async def test_a_row_held_by_another_session_is_503_with_retry_after(shop: Shop, held: str) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    async with shop.owner.transaction():
        await shop.owner.execute(f"SELECT FROM {held} FOR UPDATE")  # one of two constants
        responses = [shop.command(order, "cancel")]
        if held == "orders.inventory":
            responses.append(shop.place((product, 1), key="again"))
        for response in await asyncio.gather(*responses):
            assert refused(response) == "503 unavailable"
            assert int(response.headers["retry-after"]) >= 1
    assert (await shop.place((product, 1), key="again")).headers.get("idempotency-replayed") is None
    assert (await shop.command(order, "cancel")).status_code == 200


async def test_a_table_held_by_another_session_is_503_for_readers_too(shop: Shop) -> None:
    order = await shop.placed()
    async with shop.owner.transaction():
        await shop.owner.execute("LOCK TABLE orders.orders, orders.inventory IN ACCESS EXCLUSIVE MODE")
        responses = await asyncio.gather(
            shop.get(f"/v1/orders/{order['order_id']}"),
            shop.get(f"/v1/orders/{order['order_id']}/events"),
            shop.get("/v1/orders"),
            shop.get(f"/v1/inventory/{order['items'][0]['product_id']}"),
        )
    assert {refused(response) for response in responses} == {"503 unavailable"}
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses)


async def test_a_held_key_is_request_in_progress_and_can_be_asked_again(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    shard = ids.shard_of(shop.buyer)
    async with shop.owner.transaction():
        for key in ("p", *COMMANDS):
            await shop.owner.execute(
                "INSERT INTO orders.idempotency_keys VALUES ($1, $2, $3, '', gen_random_uuid(), 1, now())",
                *(shard, str(shop.buyer), key),
            )
        responses = await asyncio.gather(
            shop.place((product, 1), key="p"), *(shop.command(order, name, key=name) for name in COMMANDS)
        )
        await shop.owner.execute("DELETE FROM orders.idempotency_keys WHERE request_hash = ''")
    for response in responses:
        assert refused(response) == "409 request_in_progress"
        assert int(response.headers["retry-after"]) >= 1
    assert (await shop.place((product, 1), key="p")).status_code == 201
    assert (await shop.command(order, "cancel", key="cancel")).status_code == 200


async def test_without_the_database_answers_are_503_soon_and_good_again_after(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    name = await shop.owner.fetchval("SELECT current_database()")
    await shop.owner.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    await shop.owner.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1 AND usename = 'orders_api'",
        name,
    )
    async with asyncio.timeout(30):  # of a busy machine; the pool gives up after 2.5
        responses = await asyncio.gather(
            shop.place((product, 1), key="k"),
            *(shop.command(order, name, key=name) for name in COMMANDS),
            shop.get("/v1/orders"),
            shop.get(f"/v1/orders/{order['order_id']}"),
            shop.get(f"/v1/orders/{order['order_id']}/events"),
            shop.get(f"/v1/inventory/{product}"),
            shop.client.get("/readyz"),
        )
    assert {refused(response) for response in responses} == {"503 unavailable"}
    assert all(int(response.headers["retry-after"]) >= 1 for response in responses)
    assert (await shop.client.get("/healthz")).status_code == 200
    await shop.owner.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    response = await shop.place((product, 1), key="k")
    assert (response.status_code, "idempotency-replayed" in response.headers) == (201, False)
    assert (await shop.command(order, "ship", key="ship")).status_code == 200
    assert (await shop.client.get("/readyz")).json()["status"] == "ok"


async def test_placing_in_a_month_without_partitions_is_503_and_readiness_says_which(open_shop: OpenShop) -> None:
    ahead = clock.add_months(clock.month_of(clock.now()), 5)
    async with open_shop(lambda: ahead) as shop:
        product = await shop.product()
        response = await shop.place((product, 1))
        assert refused(response) == "503 unavailable"
        assert await shop.stock(product) == (100, 0)
        response = await shop.client.get("/readyz")
        assert refused(response) == "503 unavailable"
        assert f"{ahead:%Y-%m}" in response.json()["detail"]


async def test_readiness_warns_of_months_not_made_yet(open_shop: OpenShop) -> None:
    later = clock.add_months(clock.month_of(clock.now()), 1)
    async with open_shop(lambda: later) as shop:
        response = await shop.client.get("/readyz")
        assert response.status_code == 200
        assert response.json()["warnings"]


async def test_the_process_stops_though_the_relay_is_just_being_told(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings = orders_settings.model_copy(update={"valkey_url": f"redis://127.0.0.1:{mute.getsockname()[1]}"})
        for turns in range(4, 10):
            async with asyncio.timeout(10), opened_shop(settings, issuer[0], owner) as shop:
                await shop.placed()
                for _ in range(turns):
                    await asyncio.sleep(0)
                time.sleep(TIMEOUT_SECONDS)  # noqa: ASYNC251 # a busy loop: the time-out and the end fall together
