"""Placing and advancing orders: what is refused, what is answered again, what it does to order, stock and events."""

import secrets
import uuid
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest

from services.common import clock, ids, money
from services.contracts.orders import OrderStatus
from services.orders.domain import ALLOWED_ACTIONS, Command
from tests.contracts.description import refused
from tests.integration.orders.conftest import OpenShop
from tests.shop import Shop

STAFF = uuid.uuid4()
SALES = "orders:read orders:write orders:price"


async def keys(shop: Shop) -> int:
    """How many idempotency keys are stored."""
    count: int = await shop.owner.fetchval("SELECT count(*) FROM orders.idempotency_keys")
    return count


async def change(shop: Shop, order: dict[str, Any], version: int) -> dict[str, Any]:
    """The event of that version."""
    page = await shop.get(f"/v1/orders/{order['order_id']}/events", after_version=version - 1, limit=1)
    event: dict[str, Any] = page.json()["data"][0]
    return event


def same(replay: httpx.Response, first: httpx.Response) -> bool:
    """Whether `replay` is `first` given again."""
    assert "idempotency-replayed" not in first.headers
    assert replay.headers["idempotency-replayed"] == "true"
    kept = [
        {k: v for k, v in r.headers.items() if k not in ("server-timing", "x-request-id", "idempotency-replayed")}
        for r in (replay, first)
    ]
    return (replay.status_code, replay.content, kept[0]) == (first.status_code, first.content, kept[1])


# --- placing: refusals


async def test_lines_that_cannot_be_sold_are_refused_by_name_in_the_order_of_the_contract(shop: Shop) -> None:
    good, inactive = await shop.product(price=100), await shop.product(active=False)
    euro = await shop.product(currency="EUR")
    unknown = ids.to_text(ids.new_id(clock.now()))
    scarce = await shop.product(stock=2)
    unstocked = await shop.product(stock=None)

    async def place(*products: str, **body: Any) -> tuple[str, Any]:
        response = await shop.place(*((product, 1) for product in products), **body)
        content = response.json()
        return refused(response), content.get("lines") or content.get("product_ids")

    assert await place(good, unknown, inactive, euro) == ("409 product_unknown", [2])
    assert await place(good, inactive, euro, inactive) == ("409 product_inactive", [2, 4])
    assert await place(good, scarce, euro) == ("409 currency_mismatch", [3])
    assert await place(scarce, good, scarce, scarce) == ("409 out_of_stock", [scarce])
    assert await place(unstocked) == ("409 out_of_stock", [unstocked])
    assert await place(good, currency="EUR") == ("409 currency_mismatch", [1])
    assert (await shop.stock(good), await shop.stock(scarce)) == ((100, 0), (2, 0))
    assert await keys(shop) == 0


async def test_a_seen_price_that_is_no_longer_true_is_refused_with_the_price_there_is(shop: Shop) -> None:
    product = await shop.product(price=1999)
    lines = [{"product_id": product, "quantity": 1, "unit_price": price} for price in (1999, 1998)]
    response = await shop.place(items=lines)
    assert refused(response) == "409 price_changed"
    assert response.json()["lines"] == [{"line_no": 2, "unit_price": 1999}]
    assert (await shop.place(items=lines[:1])).json()["total_amount"] == 1999


async def test_a_total_past_the_bound_is_refused_and_one_at_the_bound_is_taken(shop: Shop) -> None:
    products = [await shop.product(price=money.PRICE_MAX, stock=10**7), await shop.product(price=1, stock=10**12)]
    rest = money.AMOUNT_MAX - 9_007 * money.PRICE_MAX
    lines = [
        {"product_id": products[0], "quantity": 9_007, "unit_price": money.PRICE_MAX},
        {"product_id": products[1], "quantity": 1, "unit_price": rest},
    ]
    headers = shop.auth(SALES)
    over = [*lines, {"product_id": products[1], "quantity": 1, "unit_price": 1}]
    assert refused(await shop.place(items=over, headers=headers)) == "422 amount_too_large"
    most = {"product_id": products[0], "quantity": 10**6, "unit_price": money.PRICE_MAX}
    assert refused(await shop.place(items=[most] * 2000, headers=headers)) == "422 amount_too_large"
    response = await shop.place(items=lines, headers=headers)
    assert response.json()["total_amount"] == money.AMOUNT_MAX


# --- placing: what comes of it


async def test_a_product_on_several_lines_is_charged_by_line_and_reserved_in_sum(shop: Shop) -> None:
    product = await shop.product(price=10, stock=6)
    order = await shop.placed((product, 1), (product, 2), (product, 3))
    assert [(i["line_no"], i["quantity"], i["line_total"]) for i in order["items"]] == [
        (1, 1, 10),
        (2, 2, 20),
        (3, 3, 30),
    ]
    assert (order["total_amount"], order["item_count"]) == (60, 3)
    assert await shop.stock(product) == (6, 6)


async def test_with_a_payment_method_an_order_starts_pending_and_unpaid(shop: Shop) -> None:
    order = await shop.placed(payment_method="pm_card", shipping_address_id="home")
    assert (order["status"], order["payment_status"]) == ("pending", "unpaid")
    assert (order["payment_method"], order["shipping_address_id"]) == ("pm_card", "home")
    assert order["allowed_actions"] == ["cancel"]


async def test_an_agreed_price_is_charged_and_the_event_says_who_agreed_it_for_whom(shop: Shop) -> None:
    product, buyer = await shop.product(price=1999), uuid.uuid4()
    lines = [{"product_id": product, "quantity": 2, "unit_price": 1500}, {"product_id": product, "quantity": 1}]
    response = await shop.place(items=lines, user_id=str(buyer), headers=shop.auth(SALES, sub=STAFF))
    order = response.json()
    assert (order["total_amount"], order["user_id"]) == (2 * 1500 + 1999, str(buyer))
    assert ids.order_key(ids.from_text(order["order_id"])).shard == ids.shard_of(buyer)
    headers = shop.auth("orders:read", sub=buyer)
    events = (await shop.client.get(f"/v1/orders/{order['order_id']}/events", headers=headers)).json()["data"]
    assert events[0]["actor"] == f"staff:{STAFF}"
    assert events[0]["data"]["change"]["agreed_prices"] is True
    assert refused(await shop.get(f"/v1/orders/{order['order_id']}")) == "404 not_found"


# --- keys


async def test_a_replay_is_the_first_answer_whatever_has_become_of_order_and_price(shop: Shop) -> None:
    product = await shop.product(price=1999, stock=1)
    first = await shop.place((product, 1), key="p")
    order = first.json()
    assert same(await shop.place((product, 1), key="p"), first)
    shipped = await shop.command(order, "ship", {"tracking": "T1"}, key="s")
    await shop.owner.execute("UPDATE orders.products SET price = 1, active = FALSE, name = 'Other', version = 2")
    delivered = await shop.command(shipped.json(), "deliver", key="d")
    assert delivered.json()["version"] == 3
    assert same(await shop.place((product, 1), key="p"), first)
    assert same(await shop.command(order, "ship", {"tracking": "T1"}, key="s"), shipped)
    assert same(await shop.command(shipped.json(), "deliver", key="d"), delivered)
    assert (shipped.headers["etag"], shipped.json()["tracking"]) == ('"2"', "T1")
    assert await shop.stock(product) == (0, 0)
    assert await keys(shop) == 3


async def test_quoted_and_bare_are_one_key_and_order_and_space_in_the_body_do_not_matter(shop: Shop) -> None:
    product = await shop.product()
    headers = {**shop.auth(), "Content-Type": "application/json"}
    bodies = (
        f'{{"currency": "USD", "items": [{{"product_id": "{product}", "quantity": 1}}]}}',
        f'{{"items":[{{"quantity":1,"product_id":"{product}"}}],"currency":"USD"}}',
    )
    responses = [
        await shop.client.post("/v1/orders", content=body, headers={**headers, "Idempotency-Key": key})
        for body in bodies
        for key in ('a"b', '"a\\"b"', ' a"b ')
    ]
    assert [response.status_code for response in responses] == [201] * 6
    assert all(same(response, responses[0]) for response in responses[1:])


async def test_a_key_used_for_something_else_is_refused_and_anothers_key_is_another(shop: Shop) -> None:
    product = await shop.product()
    first = await shop.place((product, 1), key="k")
    assert refused(await shop.place((product, 2), key="k")) == "422 key_reused"
    assert refused(await shop.place((product, 1), key="k", shipping_address_id="x")) == "422 key_reused"
    order = first.json()
    response = await shop.command(order, "cancel", key="k", scope="orders:write")
    assert refused(response) == "422 key_reused"
    other = await shop.place((product, 1), key="k", headers=shop.auth(sub=uuid.uuid4()))
    assert (other.status_code, "idempotency-replayed" in other.headers) == (201, False)
    assert other.json()["order_id"] != order["order_id"]
    assert await shop.stock(product) == (100, 2)
    ship = await shop.command(order, "ship", {"tracking": "1"}, key="s")
    assert refused(await shop.command(order, "ship", {"tracking": "2"}, key="s")) == "422 key_reused"
    assert same(await shop.command(order, "ship", {"tracking": "1"}, key="s"), ship)
    second = await shop.placed((product, 1))
    assert refused(await shop.command(second, "ship", {"tracking": "1"}, key="s")) == "422 key_reused"
    assert (await shop.command(second, "ship", key="e")).status_code == 200
    assert refused(await shop.command(second, "deliver", key="e", if_match='"2"')) == "422 key_reused"


@pytest.mark.parametrize("name", list(Command))
async def test_commands_check_key_then_404_then_428_then_412_then_the_state(shop: Shop, name: Command) -> None:
    product = await shop.product()
    order = (await shop.place((product, 1), key="known")).json()
    missing = ids.to_text(ids.new_order_key(shop.buyer, clock.now()).order_id)
    pending = await shop.placed((product, 1), payment_method="pm_1")
    not_now = pending if name != Command.CANCEL else (await shop.command(order, "cancel")).json()

    async def command(order_id: str, key: str | None = None, **headers: str) -> str:
        sent = {**shop.auth("orders:write orders:fulfil"), "Idempotency-Key": key or secrets.token_hex(8), **headers}
        return refused(await shop.client.post(f"/v1/orders/{order_id}/{name}", json={}, headers=sent))

    for headers in ({}, {"If-Match": '"9"'}, {"If-Match": '"1"'}):
        assert await command(missing, "known", **headers) == "422 key_reused"
        assert await command(not_now["order_id"], "known", **headers) == "422 key_reused"
        assert await command(missing, **headers) == "404 not_found"
    assert await command(not_now["order_id"]) == "428 if_match_missing"
    assert await command(not_now["order_id"], **{"If-Match": '"9"'}) == "412 version_mismatch"
    state = f'"{not_now["version"]}"'
    assert await command(not_now["order_id"], **{"If-Match": state}) == "409 transition_not_allowed"


async def test_a_known_key_needs_no_if_match_and_no_true_one(shop: Shop) -> None:
    order = await shop.placed()
    path = f"/v1/orders/{order['order_id']}/cancel"
    first = await shop.command(order, "cancel", key="c")
    for headers in ({}, {"If-Match": '"9"'}, {"If-Match": "junk"}):
        sent = {**shop.auth("orders:fulfil"), "Idempotency-Key": "c", **headers}
        assert same(await shop.client.post(path, json={}, headers=sent), first)


# --- the state machine


async def reach(shop: Shop, status: str, product: str) -> dict[str, Any]:
    """An order of two units in that status."""
    if status == "pending":
        return await shop.placed((product, 2), payment_method="pm_1")
    order = await shop.placed((product, 2))
    for name in WAYS[status].split():
        command, _, part = name.partition("-")
        body = {"items": [{"line_no": 1, "quantity": 1}]} if part else {}
        order = (await shop.command(order, command, body)).json()
    return order


WAYS = {
    "confirmed": "",
    "cancelled": "cancel",
    "partially_shipped": "ship-part",
    "shipped": "ship",
    "delivered": "ship-part ship deliver",
    "partially_returned": "ship deliver return-part",
    "returned": "ship deliver return-part return",
}


@pytest.mark.parametrize("status", OrderStatus)
async def test_an_order_does_what_its_allowed_actions_say_and_nothing_else(shop: Shop, status: str) -> None:
    product = await shop.product(stock=1000)
    after = {"cancel": "cancelled", "ship": "shipped", "deliver": "delivered", "return": "returned"}
    for name in Command:
        order = await reach(shop, status, product)
        assert order["status"] == status
        assert order["allowed_actions"] == list(ALLOWED_ACTIONS[status])
        before = await shop.stock(product)
        response = await shop.command(order, name)
        if name in order["allowed_actions"]:
            done = response.json()
            assert (response.status_code, done["status"], done["version"]) == (200, after[name], order["version"] + 1)
            assert response.headers["etag"] == f'"{done["version"]}"'
            assert (await shop.get(f"/v1/orders/{order['order_id']}")).content == response.content
            on_hand, reserved = await shop.stock(product)
            effect = (on_hand - before[0], reserved - before[1])
            left = 1 if status.startswith("partially") else 2
            effects = {"cancel": (0, -left), "ship": (-left, -left), "deliver": (0, 0), "return": (left, 0)}
            assert effect == effects[name]
        else:
            assert refused(response) == "409 transition_not_allowed"
            assert response.json()["status_now"] == status
            assert response.json()["allowed_actions"] == order["allowed_actions"]
            assert await shop.stock(product) == before
            assert (await shop.get(f"/v1/orders/{order['order_id']}")).json() == order


async def test_who_cancels_and_why_is_in_order_and_event(shop: Shop) -> None:
    product = await shop.product()
    write, fulfil, both = "orders:write", "orders:fulfil", "orders:write orders:fulfil"
    cases: list[tuple[str, uuid.UUID, dict[str, str], str, str]] = [
        (write, shop.buyer, {}, "customer", f"user:{shop.buyer}"),
        (write, shop.buyer, {"reason": "customer"}, "customer", f"user:{shop.buyer}"),
        (fulfil, STAFF, {}, "staff", f"staff:{STAFF}"),
        (fulfil, STAFF, {"reason": "out_of_stock"}, "out_of_stock", f"staff:{STAFF}"),
        (both, STAFF, {"reason": "customer"}, "customer", f"staff:{STAFF}"),
    ]
    for scope, sub, body, reason, actor in cases:
        order = await shop.placed((product, 1))
        response = await shop.command(order, "cancel", body, scope=scope, sub=sub)
        assert response.json()["cancel_reason"] == reason
        event = await change(shop, order, 2)
        assert (event["type"], event["actor"]) == ("order.cancelled", actor)
        assert event["data"]["change"] == {"cancel_reason": reason}
    for reason in ("expired", "payment_failed", "whim"):
        response = await shop.command(await shop.placed((product, 1)), "cancel", {"reason": reason})
        assert refused(response) == "422 invalid"


async def test_a_command_needs_no_body(shop: Shop) -> None:
    order = await shop.placed()
    for version, name in enumerate(("ship", "deliver", "return"), start=1):
        headers = {**shop.auth("orders:fulfil"), "Idempotency-Key": name, "If-Match": f'"{version}"'}
        assert (await shop.client.post(f"/v1/orders/{order['order_id']}/{name}", headers=headers)).status_code == 200


async def test_a_stale_version_is_told_the_current_one(shop: Shop) -> None:
    order = await shop.placed()
    await shop.command(order, "ship")
    response = await shop.command(order, "cancel")
    assert refused(response) == "412 version_mismatch"
    assert response.json()["current_version"] == 2


@pytest.mark.parametrize("offset_ms", [-1, 0, 1])
async def test_around_the_start_of_a_month_orders_are_placed_read_and_advanced(
    open_shop: OpenShop, offset_ms: int
) -> None:
    start = clock.add_months(clock.month_of(clock.now()), 1)
    at = start + timedelta(milliseconds=offset_ms)
    later: list[datetime] = [at]
    async with open_shop(lambda: later[-1]) as shop:
        product = await shop.product()
        first = await shop.place((product, 1), key="k")
        assert first.json()["created_at"] == clock.to_text(at)
        later.append(start + timedelta(milliseconds=5))
        assert same(await shop.place((product, 1), key="k"), first)
        shipped = await shop.command(first.json(), "ship")
        assert shipped.json()["updated_at"] == clock.to_text(later[-1])
        listed = (await shop.get("/v1/orders")).json()["data"]
        assert [order["order_id"] for order in listed] == [first.json()["order_id"]]
        partition = await shop.owner.fetchval("SELECT tableoid::regclass::text FROM orders.orders")
        assert partition == f"orders.orders_{at:%Y_%m}"
