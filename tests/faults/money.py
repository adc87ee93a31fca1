"""Whose money is where: the provider's ledger, our payments and the orders, held against each other one by one."""

import sqlite3
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeAlias

import asyncpg

from services.common import ids
from services.common.stream import dead_letter_topic, topics
from services.contracts.envelope import ORDERS_TOPIC, PAYMENTS_TOPIC
from services.embedded.supervisor import Stack
from tests.faults.buyers import Asked
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Rows: TypeAlias = dict[str, dict[str, Any]]

METHODS: Final = ("pm_ok", "pm_declined", "pm_late_300", "pm_lost_always", "pm_hang", "pm_busy_2", "pm_twice")
_OUR_NAMES: Final = {"authorized": "authorized", "declined": "failed", "voided": "voided"}
_SETTLED_WITHIN_SECONDS = 180.0


def _ledger(home: Path) -> sqlite3.Connection:
    ledger = sqlite3.connect(f"file:{home / 'payments-sandbox' / 'ledger.sqlite3'}?mode=ro", uri=True)
    ledger.row_factory = sqlite3.Row
    return ledger


def the_ledger(home: Path) -> dict[str, list[dict[str, Any]]]:
    """The provider's payments, by order."""
    found = defaultdict(list)
    with closing(_ledger(home)) as ledger:
        for row in ledger.execute("SELECT * FROM payments"):
            found[row["order_id"]].append(dict(row))
    return found


async def assert_callbacks_were_taken(home: Path) -> None:
    """The provider has nothing more to tell."""

    async def none_left() -> bool:
        with closing(_ledger(home)) as ledger:
            return not ledger.execute("SELECT count(*) FROM callbacks").fetchone()[0]

    await eventually(none_left, "every callback is taken", seconds=60, every=0.3)


async def settled(stack: Stack) -> None:
    """Nothing is on its way any more: every step is taken, every event has come to payments and from them."""
    owner = await asyncpg.connect(stack.addresses.postgres)

    async def left() -> Counter[str]:
        async with owner.transaction(isolation="repeatable_read", readonly=True):
            waiting = Counter[str](
                {
                    f"{name} events to be sent": await owner.fetchval(f"SELECT count(*) FROM {name}.outbox")  # noqa: S608
                    for name in ("orders", "catalog", "payments")
                }
            )
            waiting["open steps"] = await owner.fetchval("SELECT count(*) FROM payments.steps WHERE state = 'open'")
            orders = await _by_order(owner, "SELECT order_id, version FROM orders.orders")
            payments = await _by_order(owner, "SELECT order_id, version FROM payments.payments WHERE version > 0")
            taken = await owner.fetch("SELECT key, last_version FROM payments.inbox WHERE topic = $1", ORDERS_TOPIC)
            given = await owner.fetch("SELECT key, last_version FROM orders.inbox WHERE topic = $1", PAYMENTS_TOPIC)
        waiting["orders payments are behind of"] = _behind(orders, taken)
        waiting["payments orders are behind of"] = _behind(payments, given)
        return +waiting

    last = Counter[str]()

    async def nothing() -> bool:
        last.clear()
        last.update(await left())
        return not last

    try:
        await eventually(nothing, "nothing is on its way", seconds=_SETTLED_WITHIN_SECONDS, every=0.3)
    except AssertionError as error:
        raise AssertionError(f"{error}: {dict(last)}") from error
    finally:
        await owner.close()


def _behind(newest: Rows, inbox: list[asyncpg.Record]) -> int:
    last = {row["key"]: row["last_version"] for row in inbox}
    return sum(last.get(order_id, 0) != row["version"] for order_id, row in newest.items())


async def _by_order(owner: Owner, sql: str) -> Rows:
    return {ids.to_text(row["order_id"]): dict(row) for row in await owner.fetch(sql)}


async def assert_money_adds_up(stack: Stack, asked: list[Asked]) -> str:
    """Nobody is charged twice, or for nothing; nothing is confirmed unpaid; three books say the same. Figures.

    After `settled`: of an order that was paid for, nothing is still open.
    """
    owner = await asyncpg.connect(stack.addresses.postgres)
    try:
        orders = await _by_order(owner, "SELECT * FROM orders.orders WHERE payment_method IS NOT NULL")
        payments = await _by_order(owner, "SELECT * FROM payments.payments")
        refused = await owner.fetch("SELECT * FROM payments.steps WHERE state = 'refused'")
        events = await owner.fetch(
            "SELECT order_id, array_agg(type ORDER BY version) AS types FROM orders.order_events GROUP BY order_id"
        )
    finally:
        await owner.close()
    types = {ids.to_text(row["order_id"]): row["types"] for row in events}
    await assert_callbacks_were_taken(stack.settings.home)
    ledger = the_ledger(stack.settings.home)
    assert refused == []
    assert sorted(row["payment_method"] for row in orders.values()) == sorted(
        one.body["payment_method"] for one in asked if "payment_method" in one.body
    )
    assert payments.keys() == orders.keys(), "orders without payments, or payments without orders"
    assert ledger.keys() <= payments.keys(), "the provider holds what nobody has ordered"
    for order_id, order in orders.items():
        charged = ledger.get(order_id, [])
        assert len(charged) <= 1, f"{order_id} is charged twice: {charged}"
        _assert_same(order_id, payments[order_id], charged[0] if charged else None)
        _assert_paid(order, payments[order_id], types[order_id])
    assert dead_letter_topic(PAYMENTS_TOPIC) not in await topics(stack.addresses.kafka)
    read = await read_topic(stack.addresses.kafka, PAYMENTS_TOPIC)
    told = {order_id: payment["version"] for order_id, payment in payments.items() if payment["version"]}
    assert read.versions.keys() == told.keys()
    for order_id, version in told.items():
        assert read.first_seen(order_id) == list(range(1, version + 1)), f"{order_id}: {read.versions[order_id]}"
    outcomes = Counter(f"{one['status']}, {one['payment_status']}" for one in orders.values())
    return (
        f"{len(orders)} paid orders {dict(outcomes)}, {sum(told.values())} events of payments,"
        f" {read.duplicates} of them twice"
    )


def _assert_same(order_id: str, payment: dict[str, Any], charged: dict[str, Any] | None) -> None:
    """Our payment is what the provider has; who was never asked has none."""
    if charged is None:
        assert (payment["status"], payment["reference"], payment["authorized_amount"]) == ("voided", None, 0), order_id
        return
    assert _OUR_NAMES[charged["state"]] == payment["status"], f"{order_id}: {charged}, {payment}"
    for member in (
        *("reference", "currency", "amount", "payment_method"),
        *("authorized_amount", "captured_amount", "refunded_amount"),
    ):
        assert charged[member] == payment[member], f"{order_id}: {member} of {charged}, {payment}"


def _assert_paid(order: dict[str, Any], payment: dict[str, Any], types: list[str]) -> None:
    """The order has what its payment says, and was given to nobody who has not paid."""
    where = f"{order}, {payment}, {types}"
    moved = (payment["captured_amount"], payment["refunded_amount"])
    assert (order["captured_amount"], order["refunded_amount"]) == moved, where
    assert types.count("order.confirmed") <= 1, where
    if "order.confirmed" in types:
        before = types[types.index("order.confirmed") - 1]
        assert before == "order.payment_authorized", where
        assert payment["authorized_amount"] == order["total_amount"] == payment["amount"], where
    match order["status"]:
        case "cancelled":
            assert payment["status"] in {"voided", "failed"}, where
            assert moved == (0, 0), where
        case "confirmed":
            assert payment["status"] == "authorized", where
            assert moved == (0, 0), where
        case "shipped" | "delivered":
            assert moved == (order["total_amount"], 0), where
        case "returned":
            assert moved == (order["total_amount"],) * 2, where
        case status:
            raise AssertionError(f"nobody leaves an order {status}: {where}")
