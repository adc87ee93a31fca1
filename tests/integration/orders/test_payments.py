"""What payments say, on orders: as the newest of each says, in whatever order and how often they come."""

import asyncio
import itertools
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import orjson
import pytest

from services.common import clock, ids
from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.stream import Message, ensure_topic
from services.contracts.envelope import PAYMENTS_TOPIC
from services.contracts.orders import PaymentStatus
from services.contracts.payments import Payment, PaymentState
from services.orders import expiry, settlements
from services.orders.invariants import verify
from services.orders.rebuild import rebuild
from tests.conftest import AsRole
from tests.consuming import Group, metric
from tests.contracts.description import refused
from tests.contracts.events import check
from tests.faults.waiting import eventually
from tests.integration.orders.test_rebuild import stored
from tests.payment_events import TRACE, as_received, payment, told
from tests.product_events import publish
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Order = dict[str, Any]
AUTHORIZED, FAILED, VOIDED = PaymentState.AUTHORIZED, PaymentState.FAILED, PaymentState.VOIDED


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As the projector."""
    database = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=8)
    await database.open()
    yield database
    await database.close()


Wakes: TypeAlias = "list[int]"


@pytest.fixture
def wakes() -> Wakes:
    """One for each time that the relay was woken."""
    return []


@pytest.fixture
def settle(database: Database, wakes: Wakes) -> "Settle":
    """Call with payments for what comes of them, as one batch."""
    return Settle(partial(settlements.settle_orders, database, AfterCommit(lambda: wakes.append(1), None)))


class Settle:
    """One batch of one partition, handed to the projector's handler."""

    def __init__(self, handle: Callable[..., Any]) -> None:
        self.handle = handle

    async def __call__(self, *payments: Payment) -> dict[str, int]:
        return dict(await self.handle("t", as_received(*map(told, payments))))


async def shown(shop: Shop, order: Order) -> Order:
    found: Order = (await shop.get(f"/v1/orders/{order['order_id']}")).json()
    return found


async def events(shop: Shop, order: Order) -> list[dict[str, Any]]:
    """After its placing; each as it may be written."""
    found: list[dict[str, Any]] = (await shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]
    for event in found:
        check(event)
    return found[1:]


async def types(shop: Shop, order: Order) -> list[str]:
    return [event["type"].removeprefix("order.") for event in await events(shop, order)]


def state(order: Order) -> tuple[str, str, int, int]:
    return order["status"], order["payment_status"], order["captured_amount"], order["refunded_amount"]


async def assert_all_is_well(database_url: str) -> None:
    """Every invariant holds, and the rows are what the events tell."""
    report = await verify(database_url)
    assert [message for verdict in report.verdicts for message in verdict.messages] == []
    result = await rebuild(database_url)
    assert (result.written, result.products, result.left) == (0, 0, [])


async def test_an_authorized_payment_confirms_its_order_in_two_events_at_once(
    shop: Shop, settle: Settle, wakes: Wakes, owner: Owner, database_url: str
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2), payment_method="pm_card")
    assert refused(await shop.command(order, "ship")) == "409 transition_not_allowed"
    assert await settle(payment(order, AUTHORIZED)) == {"applied": 1}
    after = await shown(shop, order)
    assert (state(after), after["version"], after["expires_at"]) == (("confirmed", "authorized", 0, 0), 3, None)
    assert after["allowed_actions"] == ["cancel", "ship"]
    left = await events(shop, order)
    assert [(event["type"], event["actor"], event["data"]["change"]) for event in left] == [
        ("order.payment_authorized", "process:orders-projector", {"amount": 3998}),
        ("order.confirmed", "process:orders-projector", {}),
    ]
    assert [event["data"]["after"]["status"] for event in left] == ["pending", "confirmed"]
    assert (await shop.stock(product), len(wakes)) == ((100, 2), 1)
    rows = await owner.fetch("SELECT version, xmin FROM orders.order_events WHERE version > 1")
    assert len({row["xmin"] for row in rows}) == 1, "one transaction"
    assert {row["traceparent"] for row in await owner.fetch("SELECT * FROM orders.order_events WHERE version > 1")} == {
        TRACE
    }
    assert await owner.fetchval("SELECT array_agg(version ORDER BY position) FROM orders.outbox") == [1, 2, 3]
    assert (await shop.command(after, "ship")).status_code == 200
    await assert_all_is_well(database_url)


async def test_a_declined_payment_cancels_its_order_and_releases_its_stock(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2), payment_method="pm_declined")
    await settle(payment(order, FAILED))
    after = await shown(shop, order)
    assert (state(after), after["cancel_reason"]) == (("cancelled", "failed", 0, 0), "payment_failed")
    assert [event["data"]["change"] for event in await events(shop, order)] == [
        {"reason": "card_declined"},
        {"cancel_reason": "payment_failed"},
    ]
    assert await shop.stock(product) == (100, 0)
    await assert_all_is_well(database_url)


async def test_what_is_shipped_is_captured_and_what_comes_back_refunded_part_by_part(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product(price=100)
    order = await shop.placed((product, 3), payment_method="pm_card")
    await settle(payment(order, AUTHORIZED))
    order = await shown(shop, order)
    version, captured, refunded = 1, 0, 0
    units = {"items": [{"line_no": 1, "quantity": 1}]}
    for command, body, paid in (
        ("ship", units, "partially_captured"),
        ("ship", {}, "captured"),
        ("deliver", {}, None),
        ("return", units, "partially_refunded"),
        ("return", {}, "refunded"),
    ):
        order = (await shop.command(order, command, body)).json()
        amount = (await events(shop, order))[-1]["data"]["change"].get("amount", 0)
        captured += amount if command == "ship" else 0
        refunded += amount if command == "return" else 0
        if paid is not None:
            version += 1
            await settle(payment(order, AUTHORIZED, 300, captured, refunded, version=version))
            order = await shown(shop, order)
            assert (order["payment_status"], order["captured_amount"], order["refunded_amount"]) == (
                *(paid, captured, refunded),
            )
    assert (captured, refunded, order["status"]) == (300, 300, "returned")
    await assert_all_is_well(database_url)


async def test_states_of_a_payment_that_come_in_any_order_and_twice_lead_to_the_newest(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product(price=100, stock=1000)
    for order_of_arrival in itertools.permutations(range(3)):
        order = await shop.placed((product, 2), payment_method="pm_card")
        told_of = [
            payment(order, AUTHORIZED),
            payment(order, AUTHORIZED, 200, 50, version=2),
            payment(order, AUTHORIZED, 200, 200, 30, version=3),
        ]
        for number in order_of_arrival:
            await settle(told_of[number], told_of[number])
        await settle(*told_of)
        after = await shown(shop, order)
        assert state(after) == ("confirmed", "partially_refunded", 200, 30)
        assert after["version"] == 1 + len(await events(shop, order))
    await assert_all_is_well(database_url)


async def test_orders_in_every_state_of_their_payment_are_rebuilt_row_by_row(
    shop: Shop, settle: Settle, owner: Owner, database_url: str
) -> None:
    product = await shop.product(price=100, stock=1000)
    stories: list[tuple[PaymentState, tuple[int, ...]]] = [
        (FAILED, ()),
        (AUTHORIZED, ()),
        (VOIDED, ()),
        *((AUTHORIZED, (200, *amounts)) for amounts in ((1,), (200,), (200, 1), (200, 200))),
    ]
    reached = set()
    for status, amounts in stories:
        order = await shop.placed((product, 2), payment_method="pm_card")
        await settle(payment(order, status, *amounts))
        reached.add((await shown(shop, order))["payment_status"])
    assert reached == set(PaymentStatus) - {"on_account", "unpaid"}
    before = await stored(owner)
    await owner.execute("TRUNCATE orders.orders, orders.order_items")
    assert (await rebuild(database_url)).written == len(stories)
    assert await stored(owner) == before
    await assert_all_is_well(database_url)


async def test_the_newest_of_a_batch_is_carried_out_and_a_gap_counted(shop: Shop, settle: Settle) -> None:
    order = await shop.placed(payment_method="pm_card")
    half = payment(order, AUTHORIZED, 1999, 999, version=4)
    assert await settle(payment(order, AUTHORIZED), half, payment(order, AUTHORIZED, version=2)) == {
        "applied": 1,
        "applied_after_gap": 1,
        "stale": 1,
    }
    assert await types(shop, order) == ["payment_authorized", "confirmed", "payment_captured"]
    assert state(await shown(shop, order)) == ("confirmed", "partially_captured", 999, 0)


async def test_what_the_inbox_has_forgotten_takes_no_order_back(shop: Shop, settle: Settle, owner: Owner) -> None:
    order = await shop.placed(payment_method="pm_card")
    await settle(payment(order, AUTHORIZED), payment(order, AUTHORIZED, 1999, 1999, version=2))
    before = await shown(shop, order)
    await owner.execute("DELETE FROM orders.inbox")
    assert await settle(payment(order, AUTHORIZED)) == {"applied": 1}
    assert await shown(shop, order) == before


async def test_an_order_its_owner_cancels_keeps_its_authorization_until_it_is_voided(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1), payment_method="pm_card")
    await settle(payment(order, AUTHORIZED))
    response = await shop.command(await shown(shop, order), "cancel", scope="orders:write", sub=shop.buyer)
    cancelled = response.json()
    assert (response.status_code, state(cancelled)) == (200, ("cancelled", "authorized", 0, 0))
    assert (cancelled["allowed_actions"], await shop.stock(product)) == ([], (100, 0))
    await assert_all_is_well(database_url)
    await settle(payment(order, VOIDED, version=2))
    assert state(await shown(shop, order)) == ("cancelled", "voided", 0, 0)
    assert (await types(shop, order))[2:] == ["cancelled", "payment_voided"]
    await assert_all_is_well(database_url)


@pytest.mark.parametrize(
    ("said", "left", "paid"),
    [
        ([AUTHORIZED], ["payment_authorized"], "authorized"),
        ([AUTHORIZED, VOIDED], ["payment_authorized", "payment_voided"], "voided"),
        ([FAILED], ["payment_failed"], "failed"),
    ],
)
async def test_what_comes_after_the_order_expired_leaves_it_cancelled(
    shop: Shop,
    settle: Settle,
    database: Database,
    database_url: str,
    said: list[PaymentState],
    left: list[str],
    paid: str,
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1), payment_method="pm_late")
    assert (
        await expiry.expire_orders(
            database, AfterCommit(lambda: None, None), clock.now() + shop.settings.pending_expires_after
        )
        == 1
    )
    for version, one in enumerate(said, start=1):
        await settle(payment(order, one, version=version))
    after = await shown(shop, order)
    assert (state(after), after["cancel_reason"]) == (("cancelled", paid, 0, 0), "expired")
    assert await types(shop, order) == ["cancelled", *left]
    assert await shop.stock(product) == (100, 0)
    await assert_all_is_well(database_url)


async def test_a_payment_voided_with_nothing_held_changes_nothing(shop: Shop, settle: Settle, wakes: Wakes) -> None:
    order = await shop.placed(payment_method="pm_card")
    await shop.command(order, "cancel")
    before = await shown(shop, order)
    assert await settle(payment(order, VOIDED, 0)) == {"applied": 1}
    assert (await shown(shop, order), wakes) == (before, [])


async def test_unknown_types_are_left_alone_and_advance_the_inbox(shop: Shop, settle: Settle, owner: Owner) -> None:
    order = await shop.placed(payment_method="pm_card")
    unknown = told(payment(order, AUTHORIZED), type_="payment.disputed")
    messages = as_received(Message(unknown.key, b"\x00 whatever its body is", unknown.headers))
    assert dict(await settle.handle("t", messages)) == {"ignored": 1}
    assert await settle(payment(order, AUTHORIZED, version=2)) == {"applied": 1}, "no gap"
    assert await owner.fetchval("SELECT last_version FROM orders.inbox") == 2


def body(order: Order, **changes: Any) -> Message:
    return told(payment(order, AUTHORIZED, **changes))


def raw(order: Order, value: bytes) -> Message:
    return replace(body(order), value=value)


POISON: dict[str, Callable[[Order], Message]] = {
    "no version": lambda order: told(payment(order, AUTHORIZED), headers={"ce_sequence": b""}),
    "a version that is not the body's": lambda order: told(
        payment(order, AUTHORIZED), headers={"ce_sequence": b"%020d" % 7}
    ),
    "no JSON": lambda order: raw(order, b"{"),
    "no object": lambda order: raw(order, b"[]"),
    "no body": lambda order: raw(order, b""),
    "no payment": lambda order: raw(order, orjson.dumps({"order_id": order["order_id"], "version": 1, "data": {}})),
    "more captured than authorized": lambda order: body(order, captured_amount=2000),
    "more refunded than captured": lambda order: body(order, captured_amount=5, refunded_amount=6),
    "more authorized than asked for": lambda order: body(order, authorized_amount=2000),
    "less authorized than asked for": lambda order: body(order, authorized_amount=1998),
    "a negative amount": lambda order: body(order, refunded_amount=-1),
    "an amount with decimals": lambda order: body(order, captured_amount=1.5),
    "an amount that is a truth": lambda order: body(order, captured_amount=True),
    "failed with something held": lambda order: told(payment(order, FAILED, 1999)),
    "voided with something taken": lambda order: told(payment(order, VOIDED, 1999, 1)),
    "a status nobody knows": lambda order: told(replace(payment(order, AUTHORIZED), status="lost")),
    "a failure that cannot be stored": lambda order: told(payment(order, FAILED, failure="a\x00b")),
    "a failure that is no text": lambda order: told(payment(order, FAILED, failure=7)),
    "no order id": lambda order: body({**order, "order_id": "shoe"}),
    "an id of something else": lambda order: body({**order, "order_id": order["items"][0]["product_id"]}),
    "another order than its key says": lambda order: replace(body(order), key=unknown_order()["order_id"].encode()),
    "an id of no order": lambda _: told(payment(unknown_order(), AUTHORIZED)),
    "an id of a month that is not there": lambda _: told(payment(unknown_order(2031), AUTHORIZED)),
    "another amount than the order's": lambda order: body(order, amount=2000, authorized_amount=2000),
    "another currency": lambda order: body(order, currency="EUR"),
}


def unknown_order(year: int | None = None) -> Order:
    at = clock.now() if year is None else clock.now().replace(year=year)
    key = ids.new_order_key(ids.new_id(at), at)
    return {
        "order_id": ids.to_text(key.order_id),
        **{"user_id": "u", "payment_method": "pm", "currency": "USD", "total_amount": 1999},
    }


async def test_what_cannot_be_is_poison_and_changes_nothing(shop: Shop, settle: Settle, owner: Owner) -> None:
    order = await shop.placed(payment_method="pm_card")
    for what, made in POISON.items():
        messages = as_received(made(order))
        with pytest.raises(PoisonError) as raised:
            pytest.fail(f"{what}: {await settle.handle('t', messages)}")
        assert raised.value.message is messages[0], what
        assert await shown(shop, order) == order, what
        assert not await owner.fetchval("SELECT count(*) FROM orders.inbox"), what


async def test_an_order_on_account_has_no_payment(shop: Shop, settle: Settle) -> None:
    order = await shop.placed()
    with pytest.raises(PoisonError, match="on account"):
        await settle(payment({**order, "payment_method": "pm"}, AUTHORIZED))


async def test_an_order_that_cannot_follow_stops_no_other(
    kafka_url: str, shop: Shop, settle: Settle, owner: Owner
) -> None:
    topic = f"payments.{secrets.token_hex(4)}"
    await ensure_topic(kafka_url, topic)
    product = await shop.product()
    orders = [await shop.placed((await shop.product(), 1), payment_method="pm_declined") for _ in range(2)]
    orders += [await shop.placed((product, 1), payment_method="pm_card") for _ in range(4)]
    (line,) = orders[0]["items"]
    await owner.execute(
        "UPDATE orders.inventory SET reserved = 0 WHERE product_id = $1", ids.from_text(line["product_id"])
    )
    group = Group(kafka_url, [topic], settle.handle)
    said = [payment(order, FAILED if number < 2 else AUTHORIZED) for number, order in enumerate(orders)]
    await publish(kafka_url, topic, [told(one) for one in said])

    async def done() -> bool:
        return sum((await group.committed()).values()) == len(orders)

    async with group.member():
        await eventually(done, "all is consumed")
    assert metric("consumer_messages_total", topic=topic, outcome="dead_letter") == 1
    assert [(await shown(shop, order))["status"] for order in orders] == ["pending", "cancelled", *["confirmed"] * 4]


async def test_what_two_processes_have_at_once_is_carried_out_once(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product()
    orders = [await shop.placed((product, 1), payment_method="pm_card") for _ in range(10)]
    said = [payment(order, AUTHORIZED) for order in orders]
    outcomes = await asyncio.gather(settle(*said), settle(*said), settle(*said))
    assert sum(outcome.get("applied", 0) for outcome in outcomes) == 10
    assert sum(outcome.get("stale", 0) for outcome in outcomes) == 20
    for order in orders:
        assert await types(shop, order) == ["payment_authorized", "confirmed"]
    await assert_all_is_well(database_url)


async def test_a_cancellation_that_races_with_the_payment_leaves_one_of_two_stories(
    shop: Shop, settle: Settle, database_url: str
) -> None:
    product = await shop.product()
    for number in range(12):
        order = await shop.placed((product, 1), payment_method="pm_card")
        both = [shop.command(order, "cancel"), settle(payment(order, AUTHORIZED))]
        answers = await asyncio.gather(*(both if number % 2 else reversed(both)))
        (answer,) = (one for one in answers if isinstance(one, httpx.Response))
        assert (refused(answer), *(await types(shop, order))) in {
            ("200", "cancelled", "payment_authorized"),
            ("412 version_mismatch", "payment_authorized", "confirmed"),
        }
    await assert_all_is_well(database_url)


async def test_the_process_carries_out_what_is_on_the_topic(
    kafka_url: str, shop: Shop, as_role: AsRole, valkey_url: str
) -> None:
    order = await shop.placed(payment_method="pm_card")
    environment = {
        **os.environ,
        "ORDERS_POSTGRES_URL": as_role("orders_projector"),
        "ORDERS_VALKEY_URL": valkey_url,
        "ORDERS_KAFKA_URL": kafka_url,
    }
    await ensure_topic(kafka_url, PAYMENTS_TOPIC)
    await publish(kafka_url, PAYMENTS_TOPIC, [told(payment(order, AUTHORIZED))])
    process = await asyncio.create_subprocess_exec(Path(sys.executable).with_name("orders-projector"), env=environment)

    async def confirmed() -> bool:
        return state(await shown(shop, order))[:2] == ("confirmed", "authorized")

    try:
        await eventually(confirmed, "it is confirmed", seconds=60)
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 30) == 0
