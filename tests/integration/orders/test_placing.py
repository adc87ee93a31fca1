"""Placing orders: once for a key, all or nothing, never oversold."""

import asyncio
import secrets

from tests.shop import Shop


async def test_an_order_is_answered_as_it_will_be_read(shop: Shop) -> None:
    product = await shop.product(price=1999, name="Teapot")
    response = await shop.place((product, 3))
    assert response.status_code == 201
    order = response.json()
    assert response.headers["location"] == f"/v1/orders/{order['order_id']}"
    assert response.headers["etag"] == '"1"'
    assert order["total_amount"] == 5997
    assert (order["status"], order["payment_status"]) == ("confirmed", "on_account")
    assert order["allowed_actions"] == ["cancel", "ship"]
    read = await shop.get(f"/v1/orders/{order['order_id']}")
    assert read.content == response.content
    assert await shop.stock(product) == (100, 3)


async def test_a_hundred_requests_with_one_key_make_one_order_and_identical_bytes(shop: Shop) -> None:
    product = await shop.product()
    responses = await asyncio.gather(*(shop.place((product, 1), key="one") for _ in range(100)))
    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum("idempotency-replayed" not in response.headers for response in responses) == 1
    assert await shop.stock(product) == (100, 1)


async def test_sixty_buyers_of_seven_units_leave_seven_with_one(shop: Shop) -> None:
    product = await shop.product(stock=7)
    responses = await asyncio.gather(*(shop.place((product, 1)) for _ in range(60)))
    assert sorted(response.status_code for response in responses) == [201] * 7 + [409] * 53
    assert {r.json()["code"] for r in responses if r.status_code == 409} == {"out_of_stock"}
    assert await shop.stock(product) == (7, 7)


async def test_shuffled_overlapping_baskets_meet_no_deadlock_and_the_stock_is_exact(shop: Shop) -> None:
    random = secrets.SystemRandom()
    products = [await shop.product(stock=100_000) for _ in range(12)]
    baskets = [[(product, 1) for product in random.sample(products, 6)] for _ in range(300)]
    responses = await asyncio.gather(*(shop.place(*basket) for basket in baskets))
    assert {response.status_code for response in responses} == {201}
    sold = sum([(await shop.stock(product))[1] for product in products])
    assert sold == 300 * 6
