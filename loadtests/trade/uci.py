"""UCI Online Retail: every invoice of a British gift wholesaler, 2010-12-01 to 2011-12-09, a CSV file for each day.

All of it is given as it stands, cancellations, bad debts, prices of zero and of fractions of a penny included: the API
is to refuse what cannot be an order. Repeated lines stay lines, in the file's order. Times are UK wall clock.
"""

import csv
import io
import tarfile
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import IO, Final, NamedTuple
from zoneinfo import ZoneInfo

from loadtests.trade.trade import Line, Order, Product, Trade, TradeError, named, product_id, user_id

NAME: Final = "uci"
CURRENCY: Final = "GBP"
MINOR_UNITS: Final = 100  # in a pound
FOLDER: Final = "uci_online_retail"
ARCHIVE: Final = "by-day.tar.gz"
UNPACKED: Final = ("2010-12-01", "2011-01-18", "2011-08-12", "2011-12-09")
ALL: Final = "all"
ZONE: Final = ZoneInfo("Europe/London")
NOBODY: Final = "nobody"  # an invoice without a customer was sold over the counter, or is none: one buyer for them all

_HEADER: Final = (
    *("InvoiceNo", "StockCode", "Description", "Quantity"),
    *("InvoiceDate", "UnitPrice", "CustomerID", "Country"),
)


class Row(NamedTuple):
    """A line of a file. `price` is in minor units."""

    invoice: str
    code: str
    description: str
    quantity: int
    at: str
    price: Decimal
    customer: str


def read(data: Path, *, days: Collection[str] = (), invoices: Collection[str] = ()) -> Trade:
    """The trade of `days` (YYYY-MM-DD, or `all`) and, from whatever day, of `invoices`. No invoice is on two days.

    Files come from `days/` where they are unpacked, from the archive otherwise. TradeError when something is missing.
    """
    missing_days, missing_invoices = set(days) - {ALL}, set(invoices)
    rows: dict[str, list[Row]] = {}
    for day, file in _files(data / FOLDER, None if invoices or ALL in days else days):
        missing_days.discard(day)
        whole_day = day in days or ALL in days
        for row in _rows(file, day):
            if whole_day or row.invoice in invoices:
                missing_invoices.discard(row.invoice)
                rows.setdefault(row.invoice, []).append(row)
    if missing := sorted(missing_days | missing_invoices):
        raise TradeError(f"{data / FOLDER} has no {', '.join(missing)}")
    orders = sorted((_order(lines) for lines in rows.values()), key=lambda order: order.at)
    in_time = (row for order in orders for row in rows[order.reference])
    return Trade(NAME, CURRENCY, tuple(products(in_time)), tuple(orders))


def products(rows: Iterable[Row]) -> Iterator[Product]:
    """A product for each code in `rows`, which are in the order of time; codes that differ in letter case are two.

    Its price is the first positive one in whole pence, its name the first description there is on a line with such a
    price (on others the staff wrote notes: `damages`, `?`), then on any line, then the code itself. A code that never
    had such a price has its first one: the catalogue is to refuse it.
    """
    first: dict[str, Row] = {}
    sold: dict[str, Row] = {}
    described: dict[tuple[str, bool], str] = {}
    for row in rows:
        first.setdefault(row.code, row)
        priced = Line(row.code, 1, row.price).acceptable
        if priced:
            sold.setdefault(row.code, row)
        if (row.code, priced) not in described and (name := named(row.description)):
            described[row.code, priced] = name
    for code, row in first.items():
        name = described.get((code, True)) or described.get((code, False)) or named(code)
        yield Product(code, product_id(NAME, code), name, sold.get(code, row).price)


def _order(rows: list[Row]) -> Order:
    return Order(
        reference=rows[0].invoice,
        at=_instant(min(row.at for row in rows)),  # 43 invoices were typed in over a minute's turn
        user_id=_buyer(rows[0].customer),
        lines=tuple(Line(_product_id(row.code), row.quantity, row.price) for row in rows),
    )


@cache
def _buyer(customer: str) -> str:
    return user_id(NAME, customer.removesuffix(".0") or NOBODY)  # numbers went through a float


@cache
def _product_id(code: str) -> str:
    return product_id(NAME, code)


@cache
def _minor(pounds: str) -> Decimal:
    return Decimal(pounds) * MINOR_UNITS


def _instant(wall_clock: str) -> datetime:
    return datetime.fromisoformat(wall_clock).replace(tzinfo=ZONE)  # no invoice is of an hour that is not or is twice


def _rows(file: IO[bytes], day: str) -> Iterator[Row]:
    lines = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
    if tuple(next(lines, ())) != _HEADER:
        raise TradeError(f"{day}.csv has other columns than {', '.join(_HEADER)}")
    for invoice, code, description, quantity, at, price, customer, _ in lines:
        yield Row(invoice, code, description, int(quantity), at, _minor(price), customer)


def _files(folder: Path, days: Collection[str] | None) -> Iterator[tuple[str, IO[bytes]]]:
    """Each of `days` (None: of all there are) with its file, in order; days that are nowhere are left out."""
    if not folder.is_dir():
        raise TradeError(f"There is no {folder}. Say where the data are with --data or TRADE_DATA.")
    unpacked = {file.stem: file for file in (folder / "days").glob("*.csv")}
    if days is not None and set(days) <= set(unpacked):
        for day in sorted(days):
            with unpacked[day].open("rb") as file:
                yield day, file
    elif (folder / ARCHIVE).exists():
        with tarfile.open(folder / ARCHIVE) as archive:
            for member in sorted(archive, key=lambda member: member.name):
                day = Path(member.name).stem
                if member.isfile() and (days is None or day in days) and (content := archive.extractfile(member)):
                    yield day, content
    else:
        raise TradeError(f"There is no {folder / ARCHIVE}, where the other days are.")
