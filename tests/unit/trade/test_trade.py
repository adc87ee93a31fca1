"""What an order to be is worth, and whether the API must take it."""

import json
from datetime import UTC, datetime
from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.trade import trade
from loadtests.trade.reenact import Outcome, body, unexpected
from loadtests.trade.supply import RefusedProduct, amount_text, json_number
from loadtests.trade.supply import unexpected as unexpected_products
from loadtests.trade.trade import Adjustment, Line, Order, Product, Trade
from services.common import ids

AT = datetime(2011, 10, 31, 14, 41, tzinfo=UTC)
TEAPOT, MUG = trade.product_id("test", "teapot"), trade.product_id("test", "mug")


def order(*lines: tuple[str, int, str], adjustments: tuple[Adjustment, ...] = ()) -> Order:
    made = tuple(Line(product, quantity, Decimal(price)) for product, quantity, price in lines)
    return Order("1", AT, trade.user_id("test", "somebody"), made, adjustments)


def placed(of: Order, total: int, items: int) -> Outcome:
    return Outcome(of, 201, 0, 0.01, order_id="01", total_amount=total, item_count=items)


def test_the_total_is_lines_and_adjustments() -> None:
    sold = order(
        (TEAPOT, 3, "1999"), (MUG, 2, "250"), adjustments=(Adjustment("discount", 1, "5%", -300), _freight(500))
    )
    assert sold.gross == 6497
    assert sold.total == 6697
    assert sold.acceptable


def _freight(amount: int) -> Adjustment:
    return Adjustment("shipping", None, "Freight", amount)


@pytest.mark.parametrize(
    ("quantity", "price"),
    [(0, "100"), (-1, "100"), (1_000_001, "100"), (1, "0"), (1, "-1106206"), (1, "0.1"), (1, "1000000000001")],
)
def test_a_line_without_a_whole_positive_quantity_and_price_is_not_acceptable(quantity: int, price: str) -> None:
    assert not order((TEAPOT, quantity, price), (MUG, 1, "100")).acceptable


def test_an_order_of_no_lines_or_more_than_2000_is_not_acceptable() -> None:
    assert not order().acceptable
    assert order(*[(MUG, 1, "1")] * 2_000).acceptable
    assert not order(*[(MUG, 1, "1")] * 2_001).acceptable


def test_an_order_that_its_discounts_make_negative_is_not_acceptable() -> None:
    assert not order((MUG, 1, "100"), adjustments=(Adjustment("discount", None, "all", -101),)).acceptable


def test_demand_is_summed_over_lines_and_orders() -> None:
    wanted = trade.demand([order((MUG, 1, "1"), (TEAPOT, 2, "1"), (MUG, 3, "2")), order((MUG, 5, "1"))])
    assert wanted == {MUG: 9, TEAPOT: 2}


def test_ids_are_the_same_every_time_and_differ_by_letter_case() -> None:
    assert trade.product_id("uci", "85123A") == trade.product_id("uci", "85123A")
    assert trade.product_id("uci", "85123A") != trade.product_id("uci", "85123a")
    assert trade.product_id("uci", "1") != trade.product_id("northwind", "1")
    assert ids.to_text(ids.from_text(TEAPOT)) == TEAPOT


def test_a_repeated_product_stays_two_lines_in_the_request() -> None:
    sent = body(order((MUG, 1, "100"), (TEAPOT, 1, "5"), (MUG, 1, "100")), "GBP")
    assert [item["product_id"] for item in sent["items"]] == [MUG, TEAPOT, MUG]
    assert "adjustments" not in sent


@given(st.decimals(min_value=-(10**12), max_value=10**12, places=3))
def test_an_amount_is_sent_exactly(amount: Decimal) -> None:
    sent = orjson.dumps(json_number(amount))
    assert json.loads(sent, parse_float=Decimal, parse_int=Decimal) == amount
    assert (b"." in sent) == (amount != amount.to_integral_value())
    assert Decimal(amount_text(amount)) == amount


@given(st.text("a É£€\x00\t\u00a0\u2028", max_size=300))
def test_a_name_is_trimmed_has_no_control_characters_and_at_most_200(text: str) -> None:
    name = trade.named(text)
    assert len(name) <= 200
    assert name == name.strip()
    assert name.isprintable()


def test_a_name_keeps_its_accents_and_signs() -> None:
    assert trade.named("  GIFT\tVOUCHER £10,  Køln \x00") == "GIFT VOUCHER £10, Køln"


def test_what_comes_to_another_total_or_another_number_of_lines_is_told() -> None:
    sold = order((MUG, 1, "100"), (MUG, 1, "100"))
    assert unexpected([placed(sold, 200, 2)]) == []
    assert unexpected([placed(sold, 201, 2)]) == ["order 1: comes to 201, in the data to 200"]
    assert unexpected([placed(sold, 200, 1)]) == ["order 1: has 1 lines, in the data 2"]


def test_what_is_wrongly_refused_or_wrongly_taken_is_told() -> None:
    good, bad = order((MUG, 1, "100")), order((MUG, -1, "100"))
    refused = Outcome(good, 409, 0, 0.01, code="out_of_stock", reasons=("no",))
    assert unexpected([refused]) == ["order 1: refused with out_of_stock: no"]
    assert unexpected([placed(bad, -100, 1)]) == ["order 1: not refused as invalid but accepted"]
    assert unexpected([Outcome(bad, 404, 0, 0.01, code="not_found")]) == [
        "order 1: not refused as invalid but not_found"
    ]
    assert unexpected([Outcome(bad, 422, 0, 0.01, code="invalid")]) == []


def test_a_product_without_a_price_must_be_refused_and_one_with_a_price_taken() -> None:
    mug, sample = Product("mug", MUG, "Mug", Decimal(100)), Product("sample", TEAPOT, "Sample", Decimal("0.1"))
    sold = Trade("test", "GBP", (mug, sample), ())
    refused = [RefusedProduct(code, "", 422, "invalid", ("no",)) for code in ("mug", "sample")]
    assert unexpected_products(sold, refused[1:]) == []
    assert unexpected_products(sold, []) == ["product sample at 0.1: not refused as invalid"]
    assert unexpected_products(sold, refused) == ["product mug: refused with invalid, ('no',)"]
