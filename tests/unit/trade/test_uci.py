"""What the reader makes of invoices as they are: nothing is mended, nothing is left out."""

import tarfile
from decimal import Decimal
from pathlib import Path

import pytest

from loadtests.trade import trade, uci
from loadtests.trade.trade import TradeError
from loadtests.trade.uci import Row

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
FIRST = HEADER + (
    "536365,85123A, WHITE HANGING HEART ,6,2010-12-01 08:27:00,2.55,17850.0,United Kingdom\n"
    "536365,85123a,white hanging heart,1,2010-12-01 08:26:00,2.95,17850.0,United Kingdom\n"
    "536365,85123A, WHITE HANGING HEART ,6,2010-12-01 08:27:00,2.55,17850.0,United Kingdom\n"
    "C536364,85123A,WHITE HANGING HEART,-6,2010-12-01 08:25:00,2.55,17850.0,United Kingdom\n"
)
SECOND = HEADER + (
    '550193,PADS,"PADS, ""MATCH"" ALL",1,2011-04-15 09:27:00,0.001,13952.0,United Kingdom\n'
    "550194,22139,,56,2011-04-15 10:00:00,0.0,,Unspecified\n"
    "550194,22139,damages?,1,2011-04-15 10:00:00,0.0,,Unspecified\n"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The first day unpacked, both in the archive."""
    folder = tmp_path / uci.FOLDER
    (folder / "days").mkdir(parents=True)
    for day, text in (("2010-12-01", FIRST), ("2011-04-15", SECOND)):
        (folder / f"{day}.csv").write_text(text, "utf-8")
    with tarfile.open(folder / uci.ARCHIVE, "w:gz") as archive:
        for file in folder.glob("*.csv"):
            archive.add(file, f"by-day/{file.name}")
            if file.stem == "2010-12-01":
                file.rename(folder / "days" / file.name)
            else:
                file.unlink()
    return tmp_path


def test_repeats_stay_lines_in_the_order_of_the_file(data: Path) -> None:
    order = uci.read(data, days=["2010-12-01"]).orders[1]
    heart, other = trade.product_id("uci", "85123A"), trade.product_id("uci", "85123a")
    assert [(line.product_id, line.quantity) for line in order.lines] == [(heart, 6), (other, 1), (heart, 6)]
    assert order.total == 255 * 12 + 295
    assert order.acceptable


def test_of_several_times_the_earliest_counts_and_orders_are_in_the_order_of_time(data: Path) -> None:
    orders = uci.read(data, days=["2010-12-01"]).orders
    assert [(order.reference, order.at.strftime("%H:%M %z")) for order in orders] == [
        ("C536364", "08:25 +0000"),
        ("536365", "08:26 +0000"),
    ]
    summer = uci.read(data, days=["2011-04-15"]).orders[0]
    assert summer.at.utcoffset() == summer.at.dst() != uci.read(data, days=["2010-12-01"]).orders[0].at.utcoffset()


def test_cancellations_zero_prices_and_fractions_of_a_penny_are_given_as_they_are(data: Path) -> None:
    orders = {order.reference: order for order in uci.read(data, days=[uci.ALL]).orders}
    assert not any(orders[reference].acceptable for reference in ("C536364", "550193", "550194"))
    assert orders["C536364"].lines[0].quantity == -6
    assert orders["550193"].lines[0].unit_price == Decimal("0.1")
    assert len(orders) == 4


def test_whoever_is_not_named_is_one_buyer(data: Path) -> None:
    users = {order.reference: order.user_id for order in uci.read(data, days=[uci.ALL]).orders}
    assert users["550194"] == trade.user_id("uci", uci.NOBODY)
    assert users["536365"] == users["C536364"] == trade.user_id("uci", "17850")


def test_an_invoice_is_found_on_whatever_day_besides_whole_days(data: Path) -> None:
    def references(**wanted: list[str]) -> list[str]:
        return [order.reference for order in uci.read(data, **wanted).orders]

    assert references(invoices=["550194"]) == ["550194"]
    assert references(days=["2010-12-01"], invoices=["550193"]) == ["C536364", "536365", "550193"]
    for missing in ({"days": ["2010-12-25"]}, {"invoices": ["1"]}):
        with pytest.raises(TradeError, match=r"2010-12-25|has no 1"):
            references(**missing)


def row(code: str, description: str, pounds: str) -> Row:
    return Row("1", code, description, 1, "", Decimal(pounds) * 100, "")


def test_a_product_has_its_first_whole_price_and_the_description_that_goes_with_one() -> None:
    rows = [
        row("22139", "", "0"),
        row("22139", "amazon", "0"),
        row("22139", " RETROSPOT TEA SET", "4.95"),
        row("22139", "RETROSPOT TEA SET CERAMIC", "4.25"),
        row("PADS", "PADS TO MATCH ALL CUSHIONS", "0.001"),
        row("21134", "", "0"),
        row("22145", "?", "0"),
    ]
    found = {product.code: (product.name, product.price) for product in uci.products(rows)}
    assert found == {
        "22139": ("RETROSPOT TEA SET", 495),
        "PADS": ("PADS TO MATCH ALL CUSHIONS", Decimal("0.1")),
        "21134": ("21134", 0),
        "22145": ("?", 0),
    }
