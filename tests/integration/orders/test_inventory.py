"""Adjusting stock: once for a key, never below what is reserved, and the movements add up to the stock."""

import asyncio
import json
import secrets
import uuid
from collections.abc import AsyncIterator
from itertools import accumulate
from typing import Any

import httpx
import pytest

from services.common import clock, ids, money
from services.orders.invariants import verify
from services.orders.schemas import STOCK_DELTA_MAX
from tests.contracts.description import refused
from tests.shop import Shop, offer

KEEPER = uuid.uuid4()


@pytest.fixture
async def shop(shop: Shop, database_url: str) -> AsyncIterator[Shop]:
    """The shop, whose books have to be right when the test ends."""
    yield shop
    report = await verify(database_url)
    assert report.violated == [], [verdict.messages for verdict in report.verdicts]


async def adjust(shop: Shop, product: str, *what: Any, **how: Any) -> httpx.Response:
    """`shop.adjust` by the keeper."""
    return await shop.adjust(product, *what, sub=KEEPER, **how)


async def movements(shop: Shop, product: str) -> list[tuple[int, int, int]]:
    """(version, delta, on_hand) of each, the opening of `shop.product` among them."""
    rows = await shop.owner.fetch(
        "SELECT version, delta, on_hand FROM orders.inventory_movements WHERE product_id = $1 ORDER BY version",
        ids.from_text(product),
    )
    return [tuple(row) for row in rows]


def replayed(response: httpx.Response) -> bool:
    """Whether it is the answer to a known key."""
    return "idempotency-replayed" in response.headers


# --- what an adjustment does


async def test_an_adjustment_is_answered_with_the_stock_right_after_it_and_written_down(shop: Shop) -> None:
    product = await shop.product(stock=100)
    await shop.placed((product, 3))
    response = await adjust(shop, product, -7, "broken in the warehouse", key="k")
    assert response.status_code == 201
    assert response.json() == {"product_id": product, "on_hand": 93, "reserved": 3, "available": 90, "version": 3}
    assert response.headers["etag"] == '"3"'
    read = await shop.get(f"/v1/inventory/{product}")
    assert (read.content, read.headers["etag"]) == (response.content, '"3"')
    row = await shop.owner.fetchrow(
        "SELECT delta, reason, actor, on_hand, reserved, subject, key FROM orders.inventory_movements WHERE version = 3"
    )
    assert row is not None
    assert tuple(row) == (-7, "broken in the warehouse", f"staff:{KEEPER}", 93, 3, str(KEEPER), "k")


async def test_the_first_adjustment_of_a_product_makes_its_stock(shop: Shop) -> None:
    product = await shop.product(stock=None)
    assert refused(await shop.get(f"/v1/inventory/{product}")) == "404 not_found"
    assert refused(await adjust(shop, product, -1, key="k")) == "409 below_reserved"
    assert refused(await shop.get(f"/v1/inventory/{product}")) == "404 not_found"
    response = await adjust(shop, product, 5, key="k")
    assert response.json() == {"product_id": product, "on_hand": 5, "reserved": 0, "available": 5, "version": 1}
    await shop.placed((product, 5))
    assert await shop.stock(product) == (5, 5)


async def test_an_order_that_was_out_of_stock_is_placed_with_the_same_key_once_stock_has_come(shop: Shop) -> None:
    product = await shop.product(stock=0)
    assert refused(await shop.place((product, 1), key="k")) == "409 out_of_stock"
    await adjust(shop, product, 1)
    assert (await shop.place((product, 1), key="k")).status_code == 201


async def test_adjustments_and_what_orders_do_to_stock_add_up(shop: Shop) -> None:
    product = await shop.product(stock=10)
    kept, gone = await shop.placed((product, 2)), await shop.placed((product, 3))
    assert (await adjust(shop, product, 5)).json()["version"] == 4
    await shop.command(kept, "ship")
    await shop.command(gone, "cancel")
    response = await adjust(shop, product, -13)
    assert response.json() == {"product_id": product, "on_hand": 0, "reserved": 0, "available": 0, "version": 7}


# --- refusals


async def test_stock_never_goes_below_what_is_reserved(shop: Shop) -> None:
    product = await shop.product(stock=10)
    await shop.placed((product, 4))
    response = await adjust(shop, product, -7, key="k")
    assert refused(response) == "409 below_reserved"
    assert (response.json()["on_hand"], response.json()["reserved"]) == (10, 4)
    assert refused(await adjust(shop, product, -STOCK_DELTA_MAX)) == "409 below_reserved"
    assert await movements(shop, product) == [(1, 10, 10)]
    # A refusal is not remembered: the key is free for something else.
    assert (await adjust(shop, product, -6, key="k")).json()["available"] == 0
    assert await shop.stock(product) == (4, 4)


async def test_stock_is_bounded_by_what_json_holds_exactly(shop: Shop) -> None:
    product = await shop.product(stock=money.AMOUNT_MAX - 5)
    assert refused(await adjust(shop, product, 6)) == "422 amount_too_large"
    assert refused(await adjust(shop, product, STOCK_DELTA_MAX)) == "422 amount_too_large"
    assert (await adjust(shop, product, 5)).json()["on_hand"] == money.AMOUNT_MAX
    assert (await adjust(shop, product, -STOCK_DELTA_MAX)).status_code == 201


@pytest.mark.parametrize(
    ("delta", "reason"),
    [
        *((delta, "r") for delta in (0, 1.5, 1.0, "1", True, None, STOCK_DELTA_MAX + 1, -STOCK_DELTA_MAX - 1, 2**70)),
        *((1, reason) for reason in ("", "x" * 201, "a\x00b", "a\nb", None, 1)),
    ],
)
async def test_a_body_that_is_not_valid_is_refused(shop: Shop, delta: Any, reason: Any) -> None:
    product = await shop.product()
    body = json.dumps({"delta": delta, "reason": reason})
    headers = {**shop.auth("inventory:write"), "Idempotency-Key": "k", "Content-Type": "application/json"}
    response = await shop.client.post(f"/v1/inventory/{product}/adjustments", content=body, headers=headers)
    assert refused(response) == "422 invalid"
    assert await shop.stock(product) == (100, 0)


async def test_a_product_orders_does_not_know_is_not_found_until_it_does(shop: Shop) -> None:
    product = ids.to_text(ids.new_id(clock.now()))
    for missing in (product, "x", "7" + "Z" * 25, "1" * 26):
        assert refused(await adjust(shop, missing, key="k")) == "404 not_found"
    await offer(shop.owner, ids.from_text(product), price=1, active=False)
    assert (await adjust(shop, product, key="k")).status_code == 201
    assert not await shop.owner.fetchval("SELECT count(*) FROM orders.idempotency_keys")


async def test_what_is_wrong_first_in_the_order_of_the_contract_is_told(shop: Shop) -> None:
    product = await shop.product(stock=1)
    known = await adjust(shop, product, 1, key="known")
    unknown = ids.to_text(ids.new_id(clock.now()))
    good = {"delta": -5, "reason": "r"}

    async def sent(path: str, body: bytes, **headers: str) -> str:
        response = await shop.client.post(f"/v1/inventory/{path}/adjustments", content=body, headers=headers)
        return refused(response)

    as_json = {"Content-Type": "application/json"}
    keyed = {**as_json, "Idempotency-Key": "known"}
    writer = shop.auth("inventory:write", sub=KEEPER)
    huge, bad, valid = b" " * 300_000, b"{}", json.dumps(good).encode()
    assert await sent("x", huge) == "401 unauthenticated"
    assert await sent("x", huge, **shop.auth("orders:fulfil orders:write orders:price")) == "403 scope_missing"
    assert await sent("x", huge, **writer) == "413 body_too_large"
    assert await sent("x", b"junk", **writer) == "415 media_type"
    assert await sent("x", b"junk", **writer, **as_json) == "400 key_missing"
    assert await sent("x", b"junk", **writer, **keyed) == "400 malformed_json"
    assert await sent("x", bad, **writer, **keyed) == "422 invalid"
    assert await sent(product, bad, **writer, **keyed) == "422 invalid"
    assert await sent(product, valid, **writer, **keyed) == "422 key_reused"
    assert await sent("x", valid, **writer, **keyed) == "404 not_found"
    assert await sent(unknown, valid, **writer, **keyed) == "404 not_found"  # a key is the product's
    assert await sent(product, valid, **writer, **as_json, **{"Idempotency-Key": "new"}) == "409 below_reserved"
    assert (await adjust(shop, product, 1, key="known")).content == known.content


# --- keys


async def test_a_replay_is_the_first_answer_whatever_has_become_of_the_stock(shop: Shop) -> None:
    product = await shop.product(stock=10)
    first = await adjust(shop, product, -2, key="k")
    assert not replayed(first)
    await shop.placed((product, 3))
    await adjust(shop, product, -5, key="l")
    for key in ("k", '"k"', " k "):
        again = await adjust(shop, product, -2, key=key)
        assert replayed(again)
        assert (again.status_code, again.content, again.headers["etag"]) == (201, first.content, '"2"')
    assert await shop.stock(product) == (3, 3)
    assert await movements(shop, product) == [(1, 10, 10), (2, -2, 8), (4, -5, 3)]


async def test_a_key_used_for_something_else_is_refused_and_others_keys_are_others(shop: Shop) -> None:
    product, other = await shop.product(stock=1), await shop.product(stock=1)
    first = await adjust(shop, product, 1, "r", key="k")
    assert refused(await adjust(shop, product, 2, "r", key="k")) == "422 key_reused"
    assert refused(await adjust(shop, product, 1, "s", key="k")) == "422 key_reused"
    assert refused(await adjust(shop, product, -100, "r", key="k")) == "422 key_reused"  # not below_reserved
    elsewhere = await adjust(shop, other, 1, "r", key="k")
    another = await adjust(shop, product, 1, "r", key="k", headers=shop.auth("inventory:write"))
    assert [(r.status_code, replayed(r)) for r in (first, elsewhere, another)] == [(201, False)] * 3
    assert (await shop.stock(product), await shop.stock(other)) == ((3, 0), (2, 0))


# --- many at once


@pytest.mark.parametrize("stock", [1000, None])
async def test_a_hundred_adjustments_with_a_hundred_keys_add_up(shop: Shop, stock: int | None) -> None:
    product = await shop.product(stock=stock)
    deltas = [(-1) ** n * n if stock else n for n in range(1, 101)]
    responses = await asyncio.gather(*(adjust(shop, product, delta) for delta in deltas))
    assert {response.status_code for response in responses} == {201}
    opening = [(1, stock, stock)] if stock else []
    assert await shop.stock(product) == ((stock or 0) + sum(deltas), 0)
    told = await movements(shop, product)
    assert [version for version, _, _ in told] == list(range(1, 101 + len(opening)))
    assert [on_hand for _, _, on_hand in told] == list(accumulate(delta for _, delta, _ in told))
    assert sorted(delta for _, delta, _ in told[len(opening) :]) == sorted(deltas)
    answered = sorted((r.json()["version"], r.json()["on_hand"]) for r in responses)
    assert answered == [(version, on_hand) for version, _, on_hand in told[len(opening) :]]


@pytest.mark.parametrize(("stock", "delta"), [(100, 3), (5, -5), (None, 3)])
async def test_fifty_requests_with_one_key_make_one_movement_and_identical_bytes(
    shop: Shop, stock: int | None, delta: int
) -> None:
    product = await shop.product(stock=stock)
    responses = await asyncio.gather(*(adjust(shop, product, delta, key="one") for _ in range(50)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum(not replayed(response) for response in responses) == 1
    assert await shop.stock(product) == ((stock or 0) + delta, 0)
    assert len(await movements(shop, product)) == (1 if stock is None else 2)


async def test_stock_taken_away_while_orders_are_placed_is_never_oversold(shop: Shop) -> None:
    product = await shop.product(stock=60)
    requests = [shop.place((product, 1)) for _ in range(60)] + [adjust(shop, product, -1) for _ in range(40)]
    secrets.SystemRandom().shuffle(requests)
    responses = await asyncio.gather(*requests)
    codes = [refused(response) if response.is_error else str(response.status_code) for response in responses]
    assert set(codes) <= {"201", "409 out_of_stock", "409 below_reserved"}
    assert codes.count("201") == 60  # each unit is either taken away or reserved
    on_hand, reserved = await shop.stock(product)
    assert on_hand == reserved


# --- waiting


async def test_who_waits_for_its_own_key_is_told_so_and_who_waits_for_stock_is_sent_away(shop: Shop) -> None:
    product = await shop.product()
    async with shop.owner.transaction():
        await shop.owner.execute(
            "SELECT FROM orders.inventory WHERE product_id = $1 FOR UPDATE", ids.from_text(product)
        )
        frozen = asyncio.create_task(adjust(shop, product, key="k"))
        await asyncio.sleep(0.5)
        again = asyncio.create_task(adjust(shop, product, key="k"))
        other = asyncio.create_task(adjust(shop, product, key="l"))
        waited = await asyncio.gather(frozen, other)
        assert [refused(response) for response in waited] == ["503 unavailable"] * 2
        # The first has given up, so its second now waits for the stock itself.
        assert refused(await again) in ("503 unavailable", "409 request_in_progress")
    assert await movements(shop, product) == [(1, 100, 100)]
    async with shop.owner.transaction():
        await shop.owner.execute("SELECT orders.take_adjustment_turn($1, $2, 'k')", ids.from_text(product), str(KEEPER))
        response = await adjust(shop, product, key="k")
        assert refused(response) == "409 request_in_progress"
        assert response.headers["retry-after"] == "1"
        assert (await adjust(shop, product, key="l")).status_code == 201
        assert (await adjust(shop, product, key="k", headers=shop.auth("inventory:write"))).status_code == 201
    assert (await adjust(shop, product, key="k")).status_code == 201
    assert await shop.stock(product) == (103, 0)


async def test_a_client_that_goes_away_leaves_a_whole_adjustment(shop: Shop) -> None:
    product = await shop.product()
    async with shop.owner.transaction():
        await shop.owner.execute("SELECT FROM orders.inventory FOR UPDATE")
        request = asyncio.create_task(adjust(shop, product, key="k"))
        await asyncio.sleep(0.2)
        request.cancel()
    response = await adjust(shop, product, key="k")
    assert response.status_code == 201
    assert await shop.stock(product) == (101, 0)
