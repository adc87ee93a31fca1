"""Northwind, Microsoft's sample company, out of a MySQL dump: 77 products, 830 orders, 2,155 lines.

The dump is that of harryho/db-samples: money with two decimals, UTF-8. It says neither a currency nor a zone: USD and
UTC are taken. Lines keep their own price, which differs from the product's in 658 of them.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Final

import sqlglot
from sqlglot import exp

from loadtests.trade.trade import Adjustment, Line, Order, Product, Trade, TradeError, named, product_id, user_id

NAME: Final = "northwind"
CURRENCY: Final = "USD"
MINOR_UNITS: Final = 100  # in a dollar
DUMP: Final = Path("northwind", "db-samples_northwind.mariadb.sql")

_TABLES: Final = {"Product", "SalesOrder", "OrderDetail"}

Row = Mapping[str, str | None]


def read(data: Path) -> Trade:
    """The trade in the dump under the folder `data`. TradeError when there is no dump, or another one."""
    rows: dict[str, list[Row]] = {table: [] for table in _TABLES}
    for table, row in _rows(_text(data / DUMP)):
        rows[table].append(row)
    lines: dict[str, list[Row]] = {}
    for row in rows["OrderDetail"]:
        lines.setdefault(_given(row, "orderid"), []).append(row)
    orders = [_order(row, lines.pop(_given(row, "orderid"), [])) for row in rows["SalesOrder"]]
    if lines:
        raise TradeError(f"{DUMP}: lines of orders that are not there: {', '.join(lines)}")
    return Trade(
        NAME, CURRENCY, tuple(map(_product, rows["Product"])), tuple(sorted(orders, key=lambda order: order.at))
    )


def discount(line: Line, rate: Decimal) -> int:
    """What `rate` (0..1) takes off a line, in minor units, rounded to the nearest one, halves up.

    Each line is rounded for itself, as an invoice shows it: the order's total is then the sum of what is printed.
    """
    return int((line.total * rate).quantize(Decimal(1), ROUND_HALF_UP))


def _product(row: Row) -> Product:
    code = _given(row, "productid")
    return Product(code, product_id(NAME, code), named(_given(row, "productname")), _minor(_given(row, "unitprice")))


def _order(row: Row, rows: list[Row]) -> Order:
    lines = tuple(
        Line(
            product_id(NAME, _given(line, "productid")),
            int(_given(line, "quantity")),
            _minor(_given(line, "unitprice")),
        )
        for line in rows
    )
    adjustments = []
    for line_no, (line, said) in enumerate(zip(lines, rows, strict=True), 1):
        rate = Decimal(_given(said, "discount"))
        if off := discount(line, rate):
            adjustments.append(Adjustment("discount", line_no, f"Discount {rate:.0%}", -off))
    if freight := _minor(row["freight"] or "0"):
        adjustments.append(Adjustment("shipping", None, "Freight", _whole(freight)))
    return Order(
        reference=_given(row, "orderid"),
        at=_instant(_given(row, "orderdate")),
        user_id=user_id(NAME, _given(row, "custid")),
        lines=lines,
        adjustments=tuple(adjustments),
    )


def _instant(text: str) -> datetime:
    """Midnight of the day, as MySQL reads it: any punctuation between numbers will do, and 20 dates of this dump have
    a hyphen too many."""
    year, month, day, *_ = map(int, re.findall(r"\d+", text))
    return datetime(year, month, day, tzinfo=UTC)


def _minor(dollars: str) -> Decimal:
    return Decimal(dollars) * MINOR_UNITS


def _whole(cents: Decimal) -> int:
    if cents != cents.to_integral_value():
        raise TradeError(f"{DUMP}: freight of a fraction of a cent: {cents}")
    return int(cents)


def _given(row: Row, column: str) -> str:
    value = row[column]
    if value is None:
        raise TradeError(f"{DUMP}: no {column} in {dict(row)}")
    return value


def _text(dump: Path) -> str:
    try:
        return dump.read_text("utf-8")
    except FileNotFoundError:
        raise TradeError(f"There is no {dump}. Say where the data are with --data or TRADE_DATA.") from None


def _rows(sql: str) -> Iterator[tuple[str, Row]]:
    """Table and literals by column (lower case) of each row that `sql` inserts into a table we read."""
    for statement in sqlglot.parse(sql, read="mysql"):
        if not isinstance(statement, exp.Insert) or not isinstance(statement.this, exp.Schema):
            continue
        table = statement.this.this.name
        if table in _TABLES:
            columns = [column.name.lower() for column in statement.this.expressions]
            for row in statement.expression.expressions:
                yield table, dict(zip(columns, map(_literal, row.expressions), strict=True))


def _literal(value: exp.Expression) -> str | None:
    if isinstance(value, exp.Null):
        return None
    if isinstance(value, exp.Literal | exp.National):
        return value.name
    raise TradeError(f"{DUMP}: not a literal: {value}")
