"""What a run reports: every refusal, exact sums, nearest-rank quantiles, and a table that fits them."""

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import orjson
from rich.console import Console

from loadtests.trade.audit import Audit
from loadtests.trade.reenact import Outcome
from loadtests.trade.report import SHOWN_MAX, Report
from loadtests.trade.supply import RefusedProduct
from loadtests.trade.trade import Adjustment, Line, Order, Trade

AT = datetime(2011, 12, 9, 9, 15, tzinfo=UTC)


def report(accepted: int, refused: int) -> Report:
    off = Adjustment("discount", 1, "5%", -1)
    orders = [Order(str(n), AT + timedelta(n), "u", (Line("p", 2, Decimal(10 + n)),), (off,)) for n in range(accepted)]
    bad = [Order(f"C{n}", AT, "u", (Line("p", -1, Decimal("0.1")),)) for n in range(refused)]
    outcomes = [
        *(
            Outcome(order, 201, 0.0, (n + 1) / 1000, order_id=str(n), total_amount=int(order.total), item_count=1)
            for n, order in enumerate(orders)
        ),
        *(Outcome(order, 422, 0.2, 0.001, 2, code="invalid", reasons=("/items/0: no",)) for order in bad),
    ]
    trade = Trade("test", "GBP", (), (*orders, *bad))
    products = [RefusedProduct("PADS", "0.1", 422, "invalid", ("/price: no",))]
    return Report("r1", trade, 60.0, 8, products, outcomes, 2.0, Audit(orders=accepted), ["order 1: [no]"])


def test_sums_are_exact_and_every_refusal_is_there() -> None:
    told = orjson.loads(orjson.dumps(report(100, 30).content()))
    accepted = told["orders"]["accepted"]
    assert accepted["gross"] == 2 * sum(10 + n for n in range(100))
    assert accepted["discount"] == -100
    assert accepted["net"] == accepted["net_answered"] == accepted["gross"] - 100
    assert [one["reference"] for one in told["orders"]["refused"]] == [f"C{n}" for n in range(30)]
    assert {one["total"] for one in told["orders"]["refused"]} == {"-0.1"}
    assert told["orders"]["in_the_data"] == str(accepted["net"] - 3)
    assert told["orders"]["refused_by_code"] == {"invalid": 30}
    assert told["orders"]["asked_again"] == 30
    assert told["orders_per_second"] == 65
    assert told["late_orders"] == 30


def test_quantiles_are_nearest_rank_of_what_was_accepted() -> None:
    assert report(100, 5).content()["answer_ms"] == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert report(1, 0).content()["answer_ms"] == {"p50": 1, "p95": 1, "p99": 1, "max": 1}
    assert report(0, 1).content()["answer_ms"] == {}


def test_the_table_says_how_many_more_there_are() -> None:
    output = io.StringIO()
    report(3, SHOWN_MAX + 7).show(Console(file=output, width=160))
    assert "and 7 more" in output.getvalue()
    assert "order 1: [no]" in output.getvalue()
    assert "PADS: 422 invalid; /price: no" in output.getvalue()
