"""The reconciler: green while everything agrees, and red by name for whatever does not."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import orjson
import pytest

from services.common import clock, ids
from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.common.stream import Message
from services.contracts import envelope
from services.orders import settlements
from services.orders.seed import seed
from services.payments.provider import Charge, Provider
from services.payments.reconciler import LEDGER, RULES, Reconciliation, reconcile
from services.payments.runner import Runner
from services.payments.sandbox import SandboxProvider
from tests.conftest import AsRole
from tests.integration.payments.conftest import Books, OpenRunner
from tests.order_events import as_received
from tests.shop import Shop

UNGUARDED = "SET session_replication_role = replica"  # past every trigger
DAY = timedelta(days=1)


@dataclass
class Trade:
    """Orders, payments and provider, with messages handed over by hand in place of Kafka."""

    shop: Shop
    books: Books
    runner: Runner
    provider: SandboxProvider
    projector: Database
    reader: Database
    since: datetime

    async def place(self, payment_method: str = "pm_card") -> dict[str, Any]:
        """An order that is paid, and knows it."""
        order = await self.shop.placed(payment_method=payment_method)
        await self.tell(order)
        return order

    async def tell(self, order: dict[str, Any]) -> None:
        """What the order says reaches the provider, and what that says the order."""
        events = (await self.shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]
        await self.books.take(*(message(event, envelope.ORDERS_SOURCE) for event in events))
        while claims := await self.books.claim():
            for claim in claims:
                await self.runner.settle(claim)
        told = [
            message(
                {
                    **{name: row[name] for name in ("version", "type", "actor", "data")},
                    "event_id": ids.to_text(row["event_id"]),
                    "order_id": order["order_id"],
                    "occurred_at": clock.to_text(row["occurred_at"]),
                },
                envelope.PAYMENTS_SOURCE,
            )
            for row in await self.books.events(order["order_id"])
        ]
        if told:
            await settlements.settle_orders(
                self.projector, AfterCommit(lambda: None, None), "payments", as_received(*told)
            )

    async def reconciled(self, provider: Provider | None = None, *, grace: timedelta = timedelta()) -> Reconciliation:
        """What is found by somebody who looks a second later."""
        return await reconcile(
            self.reader,
            provider or self.provider,
            now=clock.now() + timedelta(seconds=1),
            grace=grace,
            since=self.since,
        )

    async def broken(self, *, grace: timedelta = timedelta()) -> set[tuple[str, str]]:
        """Rules that do not hold, and where."""
        found = await self.reconciled(grace=grace)
        assert found.unchecked is None
        return {(finding.rule, finding.order_id) for finding in found.findings}


def message(event: dict[str, Any], source: str) -> Message:
    """An event as the relay publishes it."""
    headers = envelope.headers(
        event_id=event["event_id"],
        type_=event["type"],
        source=source,
        subject=event["order_id"],
        time=event["occurred_at"],
        version=event["version"],
        traceparent=None,
    )
    return Message(event["order_id"].encode(), orjson.dumps(event), headers)


@pytest.fixture
async def trade(
    shop: Shop,
    books: Books,
    open_runner: OpenRunner,
    provider: SandboxProvider,
    as_role: AsRole,
    database_url: str,
) -> AsyncIterator[Trade]:
    since = clock.now()
    projector = Database(as_role("orders_projector"), application_name="test", size_max=1)
    reader = Database(database_url, application_name="test", size_max=2)
    await projector.open()
    await reader.open()
    yield Trade(shop, books, open_runner(), provider, projector, reader, since)
    await projector.close()
    await reader.close()


async def test_what_agrees_is_not_told_of(trade: Trade) -> None:
    paid, cancelled = await trade.place(), await trade.place()
    declined, on_account = await trade.place("pm_declined"), await trade.shop.placed()
    assert await trade.broken() == set()
    current = (await trade.shop.get(f"/v1/orders/{paid['order_id']}")).json()
    assert (await trade.shop.command(current, "ship")).status_code == 200
    current = (await trade.shop.get(f"/v1/orders/{cancelled['order_id']}")).json()
    assert (await trade.shop.command(current, "cancel", scope="orders:write")).status_code == 200
    for order in (paid, cancelled, declined, on_account):
        await trade.tell(order)
    statuses = {
        order["order_id"]: (await trade.shop.get(f"/v1/orders/{order['order_id']}")).json()["payment_status"]
        for order in (paid, cancelled, declined, on_account)
    }
    assert list(statuses.values()) == ["captured", "voided", "failed", "on_account"]
    assert await trade.broken() == set()


async def test_what_another_provider_has_is_not_looked_for_at_this_one(trade: Trade, database_url: str) -> None:
    await seed(database_url, products=20, orders=300, months=1)
    trade.since -= timedelta(days=31)
    elsewhere = {
        ids.to_text(row["order_id"]) for row in await trade.books.owner.fetch("SELECT order_id FROM payments.payments")
    }
    assert len(elsewhere) > 20
    assert not {found for _, found in await trade.broken()} & elsewhere  # the sandbox has those of other tests


# What is planted -> the rules that notice. A later time at which somebody looks makes it old.
CORRUPTIONS: dict[str, tuple[str, set[str]]] = {
    "a payment that is lost": (
        "DELETE FROM payments.payments; DELETE FROM payments.steps",
        {"order_has_its_payment", "confirmed_is_authorized", LEDGER},
    ),
    "an order that is lost": (
        "DELETE FROM orders.order_items; DELETE FROM orders.orders",
        {"payment_has_its_order"},
    ),
    "an order of a payment that became one on account": (
        "UPDATE orders.orders SET payment_method = NULL",
        {"payment_has_its_order"},
    ),
    "a confirmed order whose payment is voided": (
        "UPDATE payments.payments SET status = 'voided'",
        {"confirmed_is_authorized", LEDGER},
    ),
    "a confirmed order of which too little is authorised": (
        "UPDATE payments.payments SET authorized_amount = authorized_amount - 1",
        {"confirmed_is_authorized", LEDGER},
    ),
    "an order that says it is captured": (
        "UPDATE orders.orders SET captured_amount = 1",
        {"order_knows_its_payment"},
    ),
    "an order that has not heard of its capture": (
        "UPDATE payments.payments SET captured_amount = 1",
        {"order_knows_its_payment", LEDGER},
    ),
    "an order that has not heard that it is paid": (
        "UPDATE orders.orders SET status = 'pending'",
        {"order_knows_its_payment"},
    ),
    "a payment that is another one": ("UPDATE payments.payments SET reference = 'pay_x'", {LEDGER}),
    "a step that was refused": (
        "UPDATE payments.steps SET state = 'refused', error = 'closed'",
        {"no_step_is_refused"},
    ),
    "a step that nobody does": (
        "UPDATE payments.steps SET state = 'open', ended_at = NULL",
        {"no_step_is_overdue"},
    ),
}


def test_every_rule_has_a_corruption_that_it_notices() -> None:
    assert set().union(*(rules for _, rules in CORRUPTIONS.values())) == set(RULES)


@pytest.mark.parametrize("planted", CORRUPTIONS)
async def test_what_is_planted_is_found_by_name(trade: Trade, planted: str) -> None:
    order = await trade.place()
    assert await trade.broken() == set()
    sql, rules = CORRUPTIONS[planted]
    await trade.books.owner.execute(f"{UNGUARDED}; {sql}")
    assert await trade.broken() == {(rule, order["order_id"]) for rule in rules}


async def test_what_is_young_is_not_held_against_anybody(trade: Trade) -> None:
    order = await trade.shop.placed(payment_method="pm_card")
    assert await trade.broken(grace=DAY) == set(), "its payment may be on its way"
    assert await trade.broken() == {("order_has_its_payment", order["order_id"])}
    await trade.place()
    await trade.books.owner.execute("UPDATE payments.payments SET captured_amount = 1")
    assert await trade.broken(grace=DAY) == set(), "the answer may be on its way"


async def test_an_order_that_is_charged_twice_is_told_of_at_once(trade: Trade) -> None:
    order = await trade.place()
    charge = Charge(order["order_id"], order["total_amount"], "USD", "pm_card")
    await trade.provider.authorize(charge, key=f"{order['order_id']}:another")
    found = await trade.reconciled(grace=DAY)
    assert [(finding.rule, finding.order_id) for finding in found.findings] == [(LEDGER, order["order_id"])]
    assert "two payments" in found.findings[0].detail


async def test_what_was_done_by_hand_at_the_provider_is_told_of(trade: Trade) -> None:
    order = await trade.place()
    charge = Charge(order["order_id"], order["total_amount"], "USD", "pm_card")
    held = await trade.provider.look_up(charge, None, key="")
    assert held is not None
    await trade.provider.void(held, key=f"{order['order_id']}:by-hand")
    assert await trade.broken() == {(LEDGER, order["order_id"])}


async def test_a_payment_of_no_order_at_the_provider_is_told_of(trade: Trade) -> None:
    await trade.provider.authorize(Charge("what is this", 5, "USD", "pm_card"), key="stranger")
    assert await trade.broken(grace=DAY) == {(LEDGER, "what is this")}


async def test_while_the_provider_is_away_the_rest_is_checked(trade: Trade) -> None:
    order = await trade.place()
    await trade.books.owner.execute("UPDATE orders.orders SET captured_amount = 1")
    away = SandboxProvider("http://127.0.0.1:1", timeout_seconds=1)
    found = await trade.reconciled(away)
    await away.aclose()
    assert [replace(finding, detail="") for finding in found.findings] == [
        replace(found.findings[0], rule="order_knows_its_payment", order_id=order["order_id"], detail="")
    ]
    assert found.unchecked is not None
    assert found.unchecked.startswith("sandbox: no answer")
