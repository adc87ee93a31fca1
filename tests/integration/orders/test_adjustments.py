"""Tax, shipping, discount and fee, on lines and on the order, by whoever may agree prices."""

import itertools
from typing import Any

import pytest

from services.common import money
from services.contracts.orders import EventType
from services.orders import invariants, rebuild
from tests.conftest import AsRole
from tests.contracts.description import refused
from tests.shop import Shop

SALES = "orders:read orders:write orders:price"


def adjustment(kind: str, amount: Any, line_no: int | None = None, label: str = "x") -> dict[str, Any]:
    return {"kind": kind, "line_no": line_no, "label": label, "amount": amount}


@pytest.mark.parametrize(("currency", "decimals"), [("JPY", 0), ("USD", 2), ("KWD", 3)])
async def test_lines_and_adjustments_close_in_a_currency_of_any_decimals(
    shop: Shop, as_role: AsRole, database_url: str, currency: str, decimals: int
) -> None:
    assert money.DECIMALS[currency] == decimals
    one = 10**decimals  # whole unit of the currency
    product = await shop.product(price=7 * one + (1 if decimals else 0), currency=currency)
    other = await shop.product(price=3 * one, currency=currency)
    adjustments = [
        adjustment("discount", -one, 1, "Loyal"),
        adjustment("tax", 2 * one, 2, "VAT"),
        adjustment("tax", 1, None, "Rounding of tax"),
        adjustment("shipping", 5 * one, None, "Parcel"),
        adjustment("fee", 0, None, "Gift wrap"),
    ]
    items = [{"product_id": product, "quantity": 2}, {"product_id": other, "quantity": 1, "unit_price": 2 * one}]
    body = {"currency": currency, "items": items, "adjustments": adjustments}
    first = await shop.place(key="k", headers=shop.auth(SALES), **body)
    order = first.json()
    assert (first.status_code, order["adjustments"]) == (201, adjustments)
    assert order["total_amount"] == 2 * (7 * one + (1 if decimals else 0)) + 2 * one - one + 2 * one + 1 + 5 * one
    replay = await shop.place(key="k", headers=shop.auth(SALES), **body)
    assert (replay.status_code, replay.content) == (201, first.content)
    assert (await shop.get(f"/v1/orders/{order['order_id']}")).content == first.content
    assert (await shop.get("/v1/orders")).json()["data"] == [order]

    shipped = (await shop.command(order, "ship", {"items": [{"line_no": 1, "quantity": 1}]})).json()
    assert (shipped["adjustments"], shipped["total_amount"]) == (adjustments, order["total_amount"])
    events = (await shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]
    assert [event["data"]["after"]["total_amount"] for event in events] == [order["total_amount"]] * 2
    assert events[0]["type"] == EventType.PLACED
    assert events[0]["data"]["change"]["adjustments"] == adjustments
    assert (await invariants.verify(as_role("orders_inspect"))).violated == []
    assert (await rebuild.rebuild(database_url)).written == 0


async def test_a_total_may_be_nothing_but_not_less(shop: Shop) -> None:
    product = await shop.product(price=500, stock=10)
    discounts = [adjustment("discount", -499), adjustment("discount", -1, 1)]
    free = await shop.place((product, 1), adjustments=discounts, headers=shop.auth(SALES))
    assert (free.status_code, free.json()["total_amount"]) == (201, 0)
    discounts.append(adjustment("discount", -1))
    less = await shop.place((product, 1), adjustments=discounts, key="k", headers=shop.auth(SALES))
    assert refused(less) == "422 total_negative"
    assert await shop.stock(product) == (10, 1)
    # Nothing was stored, the key neither.
    mended = await shop.place((product, 1), key="k", headers=shop.auth(SALES))
    assert (mended.status_code, "idempotency-replayed" in mended.headers) == (201, False)


async def test_only_the_sum_decides_whether_the_amount_is_too_large(shop: Shop) -> None:
    product = await shop.product(price=1, stock=10)
    most = money.AMOUNT_MAX
    for adjustments, verdict in (
        ([adjustment("fee", most - 1)], most),
        ([adjustment("fee", most)], "422 amount_too_large"),
        # 2,000 of these are more than 64 bits hold.
        ([adjustment("fee", most)] * 2000, "422 amount_too_large"),
        ([adjustment("discount", -most)] * 2000, "422 total_negative"),
        ([adjustment("fee", most), adjustment("discount", -most)] * 1000, 1),
    ):
        response = await shop.place((product, 1), adjustments=adjustments, headers=shop.auth(SALES))
        found = response.json()["total_amount"] if response.status_code == 201 else refused(response)
        assert found == verdict


async def test_an_adjustment_has_the_sign_of_its_kind_and_a_line_that_is_there(shop: Shop) -> None:
    product = await shop.product()
    signs = [
        (adjustment(kind, amount), "/adjustments/0/amount")
        for kind, amount in itertools.chain(
            ((kind, -1) for kind in ("tax", "shipping", "fee")), [("discount", 1)], [("tax", None), ("tax", 0.5)]
        )
    ]
    others = [
        (adjustment("tax", 1, 3), "/adjustments"),
        (adjustment("tax", 1, 0), "/adjustments/0/line_no"),
        (adjustment("tax", 1, 2001), "/adjustments/0/line_no"),
        (adjustment("bonus", 1), "/adjustments/0/kind"),
        *((adjustment("tax", 1, label=label), "/adjustments/0/label") for label in ("", "\x00", "x" * 201)),
        ({**adjustment("tax", 1), "more": 1}, "/adjustments/0/more"),
        ({"kind": "tax", "amount": 1}, "/adjustments/0/label"),
    ]
    for content, at in signs + others:
        response = await shop.place((product, 1), (product, 1), adjustments=[content], headers=shop.auth(SALES))
        assert refused(response) == "422 invalid", content
        assert response.json()["errors"][0]["at"] == at
    assert await shop.stock(product) == (100, 0)


async def test_an_order_has_one_currency(shop: Shop) -> None:
    dollars, yen = await shop.product(currency="USD"), await shop.product(currency="JPY")
    refusal = await shop.place((dollars, 1), (yen, 1), headers=shop.auth(SALES))
    assert (refused(refusal), refusal.json()["lines"]) == ("409 currency_mismatch", [2])


async def test_the_same_order_with_other_adjustments_is_another_request(shop: Shop) -> None:
    product = await shop.product()
    headers = shop.auth(SALES)
    assert (await shop.place((product, 1), key="k", adjustments=[], headers=headers)).status_code == 201
    other = await shop.place((product, 1), key="k", adjustments=[adjustment("fee", 1)], headers=headers)
    assert refused(other) == "422 key_reused"
