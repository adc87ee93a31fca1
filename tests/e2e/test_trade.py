"""Real trade through every process: Northwind, and UCI's invoices with all their quirks; then all copies agree."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from loadtests.trade import northwind, uci
from loadtests.trade.audit import Audit, audit, compare_events
from loadtests.trade.report import Report
from loadtests.trade.run import run
from loadtests.trade.supply import Stock, stock_up
from loadtests.trade.target import Target, ask, http
from loadtests.trade.trade import Trade
from services.cli import up
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders.invariants import verify
from services.orders.rebuild import rebuild
from tests.datasets import trade_data
from tests.e2e.loadtests import command_line

RUN_SECONDS = 60.0


@pytest.fixture(scope="module")
def data() -> Path:
    return trade_data()


@pytest.fixture(scope="module")
async def stack(data: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """All parts of `orders up`, in a home and on ports of its own."""
    assert data
    settings = StackSettings(home=tmp_path_factory.mktemp("trade") / "home", port_base=free_port_base())
    async with Stack(settings, prepare=up.prepare) as started:
        yield started


@pytest.fixture
def target(stack: Stack) -> Target:
    return Target.of(stack.settings)


@pytest.fixture(autouse=True)
async def all_agrees_afterwards(stack: Stack) -> AsyncIterator[None]:
    """What `orders verify` and `orders rebuild` say once a test has traded."""
    yield
    report = await verify(stack.addresses.postgres)
    assert report.violated == [], [message for verdict in report.verdicts for message in verdict.messages]
    rebuilt = await rebuild(stack.addresses.postgres)
    assert rebuilt.orders > 0
    assert (rebuilt.written, rebuilt.left) == (0, [])


async def test_all_of_northwind_comes_to_the_cent_and_a_second_run_places_nothing_twice(
    stack: Stack, data: Path, tmp_path: Path
) -> None:
    file = tmp_path / "report.json"
    for replayed in (0, 830):
        told_to = ("northwind", "--data", str(data), "--run", "e2e", "--json", str(file))
        code, output = await command_line(stack, "trade", *told_to, seconds=RUN_SECONDS)
        assert code == 0, output
        assert "1,330,735.45 USD" in output
        told: dict[str, Any] = json.loads(file.read_text())
        assert told["disagreements"] == []
        assert told["orders"]["refused"] == told["products"]["refused"] == []
        assert told["orders"]["accepted"] == {
            "orders": 830,
            "replayed": replayed,
            "lines": 2155,
            "gross": 135_445_859,
            "shipping": 6_494_269,
            "discount": -8_866_583,
            "net": 133_073_545,
            "net_answered": 133_073_545,
        }
        compared = told["audit"]
        assert (compared["orders"], compared["lines"], compared["events"]) == (830, 2155, 830)
        assert (compared["products_in_stock"], compared["products_copied"]) == (77, 77)


async def test_four_days_of_invoices_and_the_longest_one(target: Target, data: Path) -> None:
    trade = uci.read(data, days=uci.UNPACKED, invoices=["573585"])
    report = await run(target, trade)
    assert report.disagreements == []
    told = report.content()
    accepted = {outcome.order.reference: outcome for outcome in report.outcomes if outcome.accepted}
    assert told["orders"]["accepted"]["orders"] == len(accepted) == 264
    assert told["orders"]["accepted"]["net_answered"] == 40_496_537
    assert accepted["581483"].total_amount == 80_995 * 208
    assert accepted["541431"].total_amount == 74_215 * 104
    assert (accepted["573585"].total_amount, accepted["573585"].item_count) == (1_687_458, 1_114)
    assert accepted["A563185"].total_amount == 1_106_206
    assert_every_refusal_is_told(report)
    assert report.audit is not None
    assert (report.audit.orders, report.audit.events) == (264, 264)
    assert report.audit.products_in_stock == len(
        {line.product_id for one in accepted.values() for line in one.order.lines}
    )
    assert report.audit.products_copied == sum(product.acceptable for product in trade.products)


def assert_every_refusal_is_told(report: Report) -> None:
    orders, products = report.content()["orders"], report.content()["products"]
    bad = [order for order in report.trade.orders if not order.acceptable]
    assert [one["reference"] for one in orders["refused"]] == [order.reference for order in bad]
    assert orders["refused_by_code"] == {"invalid": len(bad)} == {"invalid": 41}
    assert {one["status"] for one in orders["refused"]} == {422}
    assert all(one["reasons"][0].startswith("/items/") for one in orders["refused"])
    assert {one["code"] for one in products["refused"]} == {
        product.code for product in report.trade.products if not product.acceptable
    }
    assert {one["problem"] for one in products["refused"]} == {"invalid"}


async def test_prices_below_a_penny_are_refused_and_told(target: Target, data: Path) -> None:
    report = await run(target, uci.read(data, invoices=["550193", "568375"]))
    assert report.disagreements == []
    assert [(one["reference"], one["code"]) for one in report.content()["orders"]["refused"]] == [
        ("550193", "invalid"),
        ("568375", "invalid"),
    ]


async def test_a_changed_product_is_changed_in_every_copy_and_orders_come_at_their_pace(
    target: Target, data: Path
) -> None:
    whole = northwind.read(data)
    day = replace(whole, orders=whole.orders[:6])  # three days
    for name in ("Tea", "Other tea"):
        products = tuple(replace(one, name=name, price=one.price + 1) for one in day.products)
        report = await run(target, replace(day, products=products), speed_up=3 * 86_400)
        assert report.disagreements == []
    lasted = (day.orders[-1].at - day.orders[0].at).total_seconds() / (3 * 86_400)
    assert report.seconds >= lasted > 1
    assert report.content()["late_orders"] == 0


async def test_an_audit_tells_what_is_not_as_in_the_data(target: Target, data: Path) -> None:
    whole = northwind.read(data)
    trade = Trade(whole.name, whole.currency, whole.products, whole.orders[:3])
    report = await run(target, trade, name="tampered")
    stocked = await stock_up(target, trade, "tampered", 8)
    first = report.outcomes[0]
    line = replace(first.order.lines[0], quantity=first.order.lines[0].quantity + 1, unit_price=Decimal(1))
    tampered = replace(first, order=replace(first.order, lines=(line, *first.order.lines[1:])))
    other = replace(trade.products[0], name="Another")
    found = await audit(
        target,
        replace(trade, products=(other, *trade.products[1:])),
        [tampered, *report.outcomes[1:]],
        {**stocked, line.product_id: Stock(1, 1)},
        8,
        patience_seconds=0.5,
    )
    told = " ".join(found.differences)
    assert "items differs from the data" in told
    assert "total_amount differs from the data" in told
    assert "stock of " in told
    assert "product 1: the catalogue has" in told
    assert len(found.differences) == 4

    order_id = str(first.order_id)
    scopes = target.bearer(trade.name, "orders:read orders:read:any")
    async with http(target.orders, scopes, 1) as client:
        answer = (await ask(client, "GET", f"/v1/orders/{order_id}")).json()
    for changed, difference in (
        ({"total_amount": 1}, f"order {order_id}: events and API differ in total_amount"),
        ({"version": 2}, f"order {order_id}: not all of its events are on Kafka"),
    ):
        found = Audit()
        await compare_events(target.kafka, {order_id: answer | changed}, found, within_seconds=3)
        assert difference in found.differences
