"""Discounts by the rule that docs/trade.md states, and what the reader makes of a dump."""

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.trade import northwind
from loadtests.trade.trade import Adjustment, Line, TradeError

LINES = st.builds(Line, st.just("x"), st.integers(1, 130), st.integers(1, 30_000).map(Decimal))
RATES = st.decimals(min_value=0, max_value=1, places=2)

DUMP = """
CREATE TABLE Product (productId INT NOT NULL, unitPrice DECIMAL(10, 2) NULL) ENGINE=INNODB;
INSERT INTO Category(categoryid, categoryname) VALUES(1, N'Beverages; VALUES(2, ''x'')');
INSERT INTO Product(productid, productname, supplierid, unitprice, discontinued)
  VALUES(1, N'King''s Ærø tea ', NULL, 18.00, 0), (2, N'Mug', 1, 2.50, 1);
INSERT INTO SalesOrder(orderid, custid, orderdate, freight) VALUES(11, 7, '2007-08-01- 00:00:00.000', 32.38);
INSERT INTO SalesOrder(orderid, custid, orderdate, freight) VALUES(10, 7, '2006-07-04 00:00:00.000', 0.00);
INSERT INTO OrderDetail(orderid, productid, unitprice, quantity, discount) VALUES(11, 2, 2.10, 3, 0.15);
INSERT INTO OrderDetail(orderid, productid, unitprice, quantity, discount) VALUES(11, 1, 14.00, 1, 0);
INSERT INTO OrderDetail(orderid, productid, unitprice, quantity, discount) VALUES(10, 2, 2.00, 1, 0.00);
"""


@given(LINES, RATES)
def test_a_discount_is_the_nearest_cent(line: Line, rate: Decimal) -> None:
    off = northwind.discount(line, rate)
    assert abs(off - line.total * rate) <= Decimal("0.5")
    assert 0 <= off <= line.total


@given(st.lists(st.tuples(LINES, RATES), max_size=30))
def test_discounts_of_an_order_stray_by_half_a_cent_a_line_at_most(lines: list[tuple[Line, Decimal]]) -> None:
    rounded = sum(northwind.discount(line, rate) for line, rate in lines)
    exact = sum((line.total * rate for line, rate in lines), Decimal(0))
    assert abs(rounded - exact) <= Decimal("0.5") * len(lines)


@pytest.mark.parametrize(("cents", "off"), [(10, 1), (30, 2), (50, 3), (29, 1), (9, 0)])
def test_half_a_cent_is_rounded_up(cents: int, off: int) -> None:
    assert northwind.discount(Line("x", 1, Decimal(cents)), Decimal("0.05")) == off


def written(folder: Path, dump: str) -> Path:
    file = folder / northwind.DUMP
    file.parent.mkdir()
    file.write_text(dump, "utf-8")
    return folder


def test_orders_keep_their_own_prices_and_come_in_the_order_of_their_days(tmp_path: Path) -> None:
    read = northwind.read(written(tmp_path, DUMP))
    assert [(product.name, product.price) for product in read.products] == [
        ("King's Ærø tea", Decimal(1800)),
        ("Mug", Decimal(250)),
    ]
    assert [order.reference for order in read.orders] == ["10", "11"]
    first, second = read.orders
    assert first.total == 200
    assert first.adjustments == ()
    assert [(line.quantity, line.unit_price) for line in second.lines] == [(3, Decimal(210)), (1, Decimal(1400))]
    assert second.adjustments == (
        Adjustment("discount", 1, "Discount 15%", -95),  # of 6.30: 0.945
        Adjustment("shipping", None, "Freight", 3238),
    )
    assert second.total == 2030 - 95 + 3238
    assert second.at.isoformat() == "2007-08-01T00:00:00+00:00"
    assert first.user_id == second.user_id


def test_a_line_of_an_order_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TradeError, match="12"):
        northwind.read(
            written(
                tmp_path,
                DUMP.replace(
                    "OrderDetail(orderid, productid, unitprice, quantity, discount) VALUES(10",
                    "OrderDetail(orderid, productid, unitprice, quantity, discount) VALUES(12",
                ),
            )
        )


def test_a_missing_dump_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TradeError, match="TRADE_DATA"):
        northwind.read(tmp_path)
