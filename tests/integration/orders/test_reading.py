"""Reading: versions and conditions, pages of orders across months, pages of events."""

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from services.common import clock, ids
from tests.contracts.description import refused
from tests.integration.orders.conftest import OpenShop
from tests.shop import Shop


@asynccontextmanager
async def old_shop(
    open_shop: OpenShop, shop: Shop, *days: datetime
) -> AsyncIterator[tuple[Shop, list[dict[str, Any]]]]:
    """A shop today with an order placed on each of those days, oldest first; their months are made."""
    for day in days:
        await shop.owner.execute("SELECT orders.create_month($1)", day.date())
    product = await shop.product(stock=1000)
    now = clock.now()
    times = [now]
    orders = []
    async with open_shop(lambda: times[-1]) as opened:
        opened.buyer = shop.buyer
        for day in days:
            times.append(day)
            orders.append(await opened.placed((product, 1)))
        times.append(now)
        yield opened, orders


async def pages(shop: Shop, path: str = "/v1/orders", **params: Any) -> list[list[dict[str, Any]]]:
    """All pages, by following the cursors."""
    found, cursor = [], None
    while True:
        response = await shop.get(path, **params, **({} if cursor is None else {"cursor": cursor}))
        assert response.status_code == 200, response.text
        page = response.json()
        found.append(page["data"])
        assert len(found) < 200, "the cursors lead nowhere"
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def order_ids(*found: list[dict[str, Any]]) -> list[str]:
    return [order["order_id"] for page in found for order in page]


# --- one order


async def test_a_tag_that_names_the_version_is_answered_304_without_a_body(shop: Shop) -> None:
    path = f"/v1/orders/{(await shop.placed())['order_id']}"
    for tag in ('"1"', 'W/"1"', "*", '"7", "1"', 'W/"7" , W/"1"', ' "1" '):
        response = await shop.client.get(path, headers={**shop.auth(), "If-None-Match": tag})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", '"1"'), tag


async def test_a_tag_that_names_something_else_is_answered_with_the_order(shop: Shop) -> None:
    order = await shop.placed()
    for tag in ('"2"', 'W/"11"', "1", '""', "", '"1', "junk, *x"):
        headers = {**shop.auth(), "If-None-Match": tag}
        response = await shop.client.get(f"/v1/orders/{order['order_id']}", headers=headers)
        assert (response.status_code, response.json()) == (200, order), tag


async def test_min_version_is_reached_or_refused_and_comes_before_the_condition(shop: Shop) -> None:
    order = await shop.placed()
    path = f"/v1/orders/{order['order_id']}"
    assert (await shop.get(path, min_version=1)).json() == order
    headers = {**shop.auth(), "If-None-Match": '"1"'}
    response = await shop.client.get(path, params={"min_version": 2}, headers=headers)
    assert refused(response) == "409 version_not_reached"
    assert response.json()["current_version"] == 1
    await shop.command(order, "ship")
    response = await shop.client.get(path, params={"min_version": 2}, headers=headers)
    assert (response.status_code, response.json()["version"]) == (200, 2)
    for value in (0, -1, "x", "1.5", 2**31, "9" * 5000, ""):
        assert refused(await shop.get(path, min_version=value)) == "422 invalid", value


async def test_unknown_parameters_are_refused_before_the_order_is_looked_for(shop: Shop) -> None:
    for path in ("/v1/orders", "/v1/orders/x", "/v1/orders/x/events"):
        response = await shop.get(path, page=2)
        assert refused(response) == "422 invalid"
        assert response.json()["errors"][0]["at"] == "/page"


# --- events


async def test_events_come_in_version_order_in_pages_to_the_end(shop: Shop) -> None:
    order = await shop.placed()
    path = f"/v1/orders/{order['order_id']}/events"
    shipped = (await shop.command(order, "ship", {"tracking": "T"})).json()
    await shop.command(shipped, "deliver")
    everything = (await shop.get(path)).json()
    assert everything["next_cursor"] is None
    events = everything["data"]
    assert [(event["version"], event["type"]) for event in events] == [
        (1, "order.placed"),
        (2, "order.shipped"),
        (3, "order.delivered"),
    ]
    assert len({event["event_id"] for event in events}) == 3
    for limit in (1, 2, 3, 1000):
        found, after = [], "0"
        while True:
            page = (await shop.get(path, limit=limit, after_version=after)).json()
            assert len(page["data"]) <= limit
            found += page["data"]
            if page["next_cursor"] is None:
                break
            after = page["next_cursor"]
        assert found == events
    for after_version in (3, 4, 2**31 - 1):
        assert (await shop.get(path, after_version=after_version)).json() == {"data": [], "next_cursor": None}
    for wrong in ({"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"after_version": -1}, {"after_version": 2**31}):
        assert refused(await shop.get(path, **wrong)) == "422 invalid"


# --- lists


async def test_pages_across_months_have_no_gap_and_no_double_and_end_with_null(open_shop: OpenShop, shop: Shop) -> None:
    this = clock.month_of(clock.now())
    days = [
        clock.add_months(this, -back) + timedelta(milliseconds=ms) for back in (5, 3, 2) for ms in (0, 1, 86_400_000)
    ]
    days += [clock.add_months(this, -1) - timedelta(milliseconds=1)]
    async with old_shop(open_shop, shop, *sorted(days)) as (opened, orders):
        newest_first = order_ids(orders[::-1])
        for limit in (1, 3, 10, 100):
            found = await pages(opened, limit=limit)
            assert all(len(page) <= limit for page in found)
            assert order_ids(*found) == newest_first
        assert [len(page) for page in await pages(opened, limit=10)] == [10, 0]
        stranger = opened.auth("orders:read", sub=uuid.uuid4())
        assert (await opened.client.get("/v1/orders", headers=stranger)).json() == {"data": [], "next_cursor": None}


async def test_an_order_of_nine_years_ago_is_reached_through_short_pages(open_shop: OpenShop, shop: Shop) -> None:
    old = clock.add_months(clock.month_of(clock.now()), -9 * 12) + timedelta(days=3)
    async with old_shop(open_shop, shop, old) as (opened, orders):
        found = await pages(opened)
        assert order_ids(*found) == order_ids(orders)
        assert len(found) == 5
        assert [len(page) for page in found] == [0, 0, 0, 0, 1]
        found = await pages(opened, status="confirmed", created_from=clock.to_text(old))
        assert order_ids(*found) == order_ids(orders)
        assert await pages(opened, created_to=clock.to_text(old)) == [[]]
        assert (await opened.get(f"/v1/orders/{orders[0]['order_id']}")).json() == orders[0]


async def test_filters_are_half_open_by_any_offset_and_by_status(open_shop: OpenShop, shop: Shop) -> None:
    first = clock.add_months(clock.month_of(clock.now()), -2)
    days = [first + timedelta(hours=hours) for hours in range(4)]
    async with old_shop(open_shop, shop, *days) as (opened, orders):
        newest_first = order_ids(orders[::-1])

        async def found(**params: Any) -> list[str]:
            return order_ids(*await pages(opened, limit=1, **params))

        def text(at: datetime, minutes: int = 0) -> str:
            sign = "-" if minutes < 0 else "+"
            local = (at + timedelta(minutes=minutes)).replace(tzinfo=None)
            return f"{local.isoformat()}{sign}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"

        for minutes in (0, 330, -720):
            assert (
                await found(created_from=text(days[1], minutes), created_to=text(days[3], minutes)) == newest_first[1:3]
            )
        assert await found(created_from=clock.to_text(days[2])) == newest_first[:2]
        assert await found(created_to=clock.to_text(days[1])) == newest_first[3:]
        assert await found(created_from=clock.to_text(days[3]), created_to=clock.to_text(days[0])) == []
        assert await found(created_to="1900-01-01T00:00:00Z") == []
        assert await found(created_from="9000-01-01T00:00:00Z") == []
        assert await found(created_to="9000-01-01T00:00:00Z", created_from=clock.to_text(days[3])) == newest_first[:1]
        await opened.command(orders[1], "cancel")
        assert await found(status="cancelled") == [orders[1]["order_id"]]
        assert await found(status="confirmed", created_to=clock.to_text(days[3])) == [newest_first[1], newest_first[3]]
        assert await found(status="returned") == []


async def test_a_filter_that_means_nothing_is_refused(shop: Shop) -> None:
    wrong: list[dict[str, Any]] = [
        *({"created_from": text} for text in ("2026-01-01T00:00:00", "2026-01-01", "1767225600", "1e9", "now", "")),
        *({"created_to": text} for text in ("2026-13-01T00:00:00Z", "2026-01-01T00:00:00+99:99", "inf", "\x00")),
        *({"created_to": f"{text}-01-01T00:00:00{offset}"} for text in ("0001", "9999") for offset in ("Z", "+14:00")),
        *({"created_from": text} for text in ("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00")),
        *({"limit": limit} for limit in (0, 101, -1, "x", "", 2**70)),
        *({"status": status} for status in ("", "CONFIRMED", "open", "confirmed\x00")),
    ]
    for params in wrong:
        assert refused(await shop.get("/v1/orders", **params)) == "422 invalid", params


async def test_a_bound_far_in_the_future_costs_no_pages(shop: Shop) -> None:
    order = await shop.placed()
    assert await pages(shop, created_to="9000-01-01T00:00:00Z") == [[order]]


async def test_a_cursor_is_for_its_own_query_and_reader(shop: Shop) -> None:
    product = await shop.product()
    for _ in range(3):
        await shop.placed((product, 1))
    cursor = (await shop.get("/v1/orders", limit=1)).json()["next_cursor"]
    assert len((await shop.get("/v1/orders", limit=2, cursor=cursor)).json()["data"]) == 2
    others: list[dict[str, str]] = [{"status": "confirmed"}, {"created_from": "2020-01-01T00:00:00Z"}]
    for params in others:
        assert refused(await shop.get("/v1/orders", cursor=cursor, **params)) == "400 bad_cursor"
    headers = shop.auth("orders:read", sub=uuid.uuid4())
    response = await shop.client.get("/v1/orders", params={"cursor": cursor}, headers=headers)
    assert refused(response) == "400 bad_cursor"
    raw = base64.urlsafe_b64decode(cursor)
    flipped = [base64.urlsafe_b64encode(raw[:i] + bytes([raw[i] ^ 1]) + raw[i + 1 :]).decode() for i in range(len(raw))]
    for wrong in [
        *flipped,
        "",
        "x",
        cursor[:-4],
        cursor + "AAAA",
        cursor * 50,
        "é",
        "\x00",
        base64.b64encode(b"\xff" * 24),
    ]:
        assert refused(await shop.get("/v1/orders", cursor=wrong)) == "400 bad_cursor", wrong


async def test_pages_hold_each_order_once_while_orders_are_being_placed(shop: Shop) -> None:
    product = await shop.product(stock=10_000)
    before = [await shop.placed((product, 1)) for _ in range(12)]
    placing = True

    async def place() -> None:
        while placing:
            await shop.placed((product, 1))

    writers = [asyncio.create_task(place()) for _ in range(3)]
    try:
        for _ in range(5):
            found = order_ids(*await pages(shop, limit=3))
            assert len(found) == len(set(found))
            assert found[-12:] == order_ids(before[::-1])
    finally:
        placing = False
        await asyncio.gather(*writers)


async def test_a_page_reads_orders_as_one_by_one(shop: Shop) -> None:
    order = await shop.placed((await shop.product(), 1), (await shop.product(), 2), payment_method="pm_1")
    cancelled = (await shop.command(await shop.placed(), "cancel")).json()
    assert (await shop.get("/v1/orders")).json()["data"] == [cancelled, order]
    headers = shop.auth("orders:read orders:read:any", sub=uuid.uuid4())
    response = await shop.client.get(f"/v1/orders?user_id={quote(str(shop.buyer))}", headers=headers)
    assert response.json()["data"] == [cancelled, order]
    assert (await shop.client.get("/v1/orders", headers=headers)).json()["data"] == []


# --- stock


async def test_stock_is_told_to_anybody_with_a_token(shop: Shop) -> None:
    product = await shop.product(stock=5)
    await shop.placed((product, 2))
    response = await shop.client.get(f"/v1/inventory/{product.lower()}", headers=shop.auth("", sub=uuid.uuid4()))
    expected = {"product_id": product, "on_hand": 5, "reserved": 2, "available": 3, "version": 2}
    assert (response.json(), response.headers["etag"]) == (expected, '"2"')
    unstocked = await shop.product(stock=None)
    for unknown in (unstocked, ids.to_text(uuid.uuid4())):
        assert refused(await shop.get(f"/v1/inventory/{unknown}")) == "404 not_found"
