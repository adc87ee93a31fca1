"""The readers on the data sets themselves, against totals that are reckoned here in another way."""

import csv
import re
import tarfile
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import pytest

from loadtests.trade import northwind, uci
from loadtests.trade.trade import Trade
from tests.datasets import trade_data


@pytest.fixture(scope="module")
def data() -> Path:
    return trade_data()


@pytest.fixture(scope="module")
def whole_year(data: Path) -> Trade:
    return uci.read(data, days=[uci.ALL])


def test_all_of_northwind_comes_to_the_cent(data: Path) -> None:
    text = (data / northwind.DUMP).read_text("utf-8")
    freight = {
        number: Fraction(cents)
        for number, cents in re.findall(
            r"VALUES\((\d{5}), \d+, \d+, '[^']+', '[^']+', (?:'[^']+'|NULL), \d, ([\d.]+)", text
        )
    }
    total: dict[str, Fraction] = defaultdict(Fraction, freight)
    gross = exact_net = Fraction(0)
    for number, _, price, quantity, rate in re.findall(r"VALUES\((\d{5}), (\d+), ([\d.]+), (\d+), ([\d.]+)\);", text):
        line = Fraction(price) * int(quantity)
        off = Fraction(int(line * Fraction(rate) * 100 + Fraction(1, 2)), 100)  # half up: what is taken is not negative
        gross, exact_net = gross + line, exact_net + line * (1 - Fraction(rate))
        total[number] += line - off
    assert gross == Fraction("1354458.59")
    assert sum(freight.values()) == Fraction("64942.69")
    assert exact_net == Fraction("1265793.0395")
    assert sum(total.values()) == Fraction("1330735.45")  # goods 1,265,792.76 and freight

    read = northwind.read(data)
    assert {order.reference: order.total for order in read.orders} == {
        number: amount * 100 for number, amount in total.items()
    }
    assert (len(read.products), len(read.orders), sum(len(order.lines) for order in read.orders)) == (77, 830, 2155)
    assert len({order.user_id for order in read.orders}) == 89
    assert all(order.acceptable for order in read.orders)
    assert all(product.acceptable for product in read.products)


def test_every_line_of_the_year_is_read_and_every_invoice_comes_to_its_exact_total(
    data: Path, whole_year: Trade
) -> None:
    thousandths: dict[str, int] = defaultdict(int)
    lines = 0
    with tarfile.open(data / uci.FOLDER / uci.ARCHIVE) as archive:
        for member in archive:
            if file := archive.extractfile(member):
                for row in csv.DictReader(line.decode() for line in file):
                    pounds, _, fraction = row["UnitPrice"].removeprefix("-").partition(".")
                    price = int(pounds + fraction.ljust(3, "0")) * (-1 if row["UnitPrice"].startswith("-") else 1)
                    thousandths[row["InvoiceNo"]] += price * int(row["Quantity"])
                    lines += 1
    assert lines == sum(len(order.lines) for order in whole_year.orders) == 541_909
    assert sum(thousandths.values()) == 9_747_747_934
    assert {order.reference: order.total * 10 for order in whole_year.orders} == thousandths


def test_what_is_to_be_taken_and_what_is_to_be_refused(whole_year: Trade) -> None:
    assert (len(whole_year.orders), len(whole_year.products)) == (25_900, 4_070)
    accepted = [order for order in whole_year.orders if order.acceptable]
    assert len(accepted) == 19_903
    assert sum(order.total for order in accepted) == 1_057_000_714
    assert not any(order.acceptable for order in whole_year.orders if order.reference.startswith("C"))
    assert [order.reference for order in accepted if order.reference.startswith("A")] == ["A563185"]
    assert sum(not product.acceptable for product in whole_year.products) == 133
    assert all(1 <= len(product.name) <= 200 for product in whole_year.products)
    assert len({product.product_id for product in whole_year.products}) == 4_070
    assert sorted(whole_year.orders, key=lambda order: order.at) == list(whole_year.orders)


def test_the_unpacked_days_are_the_same_as_in_the_archive_and_have_the_great_orders(
    data: Path, whole_year: Trade
) -> None:
    orders = {order.reference: order for order in whole_year.orders}
    days = uci.read(data, days=uci.UNPACKED)
    assert len(days.orders) == 304
    for order in days.orders:
        assert orders[order.reference] == order
    assert max(line.quantity for order in days.orders for line in order.lines) == 80_995
    assert len(orders["573585"].lines) == 1_114
    assert orders["573585"].total == 1_687_458
