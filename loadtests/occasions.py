"""An occasion for each statement that somebody waits for: values as a process would give it, of rows that are there.

They serve to explain statements (loadtests.explain): in tests/plans, and after a load run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from loadtests.explain import Explain, Plan
from services.catalog import queries as catalog_queries
from services.catalog import repository as catalog
from services.common import clock, ids
from services.common.db import SESSION, Statement
from services.common.ids import OrderKey
from services.contracts.envelope import ORDERS_TOPIC
from services.customers import repository as customers
from services.customers.personal import Destination, Person, sealed
from services.orders import queries, reports, repository, rollups, summaries
from services.orders.advance import ADVANCE
from services.orders.place import PLACE
from services.orders.sales import Deltas
from services.payments import repository as payments
from services.relay.invalidations import INVALIDATIONS
from services.relay.leases import beating
from services.relay.outbox import SLICES
from services.relay.outboxes import OUTBOXES, Queue, looking

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

PAGE: Final = 20  # what APIs give when nobody asks for more
LINES: Final = 3  # of an order that is placed
BATCH: Final = 50  # rows that relay and projector have at once
DAYS: Final = 30  # of a report
KEY: Final = "explained"  # which nobody has used
USED_KEY: Final = "explained before"
_LAST: Final = UUID(int=2**128 - 1)
_AMOUNT_MAX: Final = 2**53 - 1
_ACTOR: Final = "process:loadtests"
_QUEUES: Final[Sequence[Queue]] = (*OUTBOXES, *INVALIDATIONS)


@dataclass(frozen=True)
class Occasion:
    """A statement and the values of its parameters."""

    statement: Statement
    values: dict[str, Any]

    async def explained(self, connection: "Connection") -> Plan:
        """Its plan as it ran; nothing of it is left."""
        return await Explain(connection, {**SESSION, **catalog_queries.SESSION})(self.statement, **self.values)


@dataclass(frozen=True)
class Facts:
    """What is there: a small order of the middle of the months, with its buyer; a frequent buyer; the first products.

    Also the youngest orders, one that has expired, an address of the buyer's (if none, somebody's), and slices and
    positions of what waits for the relay, by its table.
    """

    now: datetime
    order: OrderKey
    version: int
    owner: UUID
    buyer: UUID
    products: list[UUID]
    young: list[OrderKey]
    expired: OrderKey
    address_id: UUID
    waiting: Mapping[str, list[tuple[int, int]]]

    @classmethod
    async def of(cls, connection: "Connection") -> Self | None:
        """None when nobody has ordered, or there is no stock."""
        months = await connection.fetchrow(
            "SELECT min(created_at) AS first, max(created_at) AS last FROM orders.orders"  # by index, month by month
        )
        products = await connection.fetch(
            "SELECT product_id FROM orders.products p JOIN orders.inventory i USING (product_id)"
            " WHERE active AND currency = 'USD' AND on_hand - reserved > $1 ORDER BY product_id LIMIT $2",
            *(1, LINES),
        )
        if months is None or months["first"] is None or len(products) < LINES:
            return None
        middle = months["first"] + (months["last"] - months["first"]) / 2
        order = await connection.fetchrow(
            "SELECT order_id, created_at, shard, version, user_id"
            " FROM (SELECT * FROM orders.orders WHERE created_at >= $1 ORDER BY created_at, order_id LIMIT 1000) later"
            " ORDER BY item_count > 3 OR version > 4, created_at, order_id LIMIT 1",
            middle,
        )
        assert order is not None  # noqa: S101 # the last one at least
        expired = await connection.fetchrow(
            "SELECT order_id, created_at, shard FROM orders.orders"
            " WHERE status = 'pending' AND expires_at <= now() ORDER BY expires_at LIMIT 1"
        )
        young = await connection.fetch(
            "SELECT order_id, created_at, shard, user_id FROM orders.orders"
            " ORDER BY created_at DESC, order_id DESC LIMIT 1000"
        )
        buyers = [row["user_id"] for row in young]
        buyer = max(buyers, key=buyers.count)
        address_id = await connection.fetchval(
            "SELECT address_id FROM customers.addresses WHERE user_id = $1 LIMIT 1", buyer
        )
        waiting = {
            queue.table: [
                (row["slice"], row["position"])
                for row in await connection.fetch(
                    f"SELECT slice, position FROM {queue.table} ORDER BY slice, position LIMIT {BATCH}"
                )
            ]
            for queue in _QUEUES
        }
        return cls(
            now=clock.now(),
            order=_key(order),
            version=order["version"],
            owner=order["user_id"],
            buyer=buyer,
            products=[row["product_id"] for row in products],
            young=[_key(row) for row in young[:BATCH]],
            expired=_key(expired or order),
            address_id=address_id or ids.new_id(clock.now()),
            waiting=waiting,
        )

    @property
    def command(self) -> dict[str, Any]:
        """What a command on the order binds."""
        return {**self.order._asdict(), "slice": self.order.shard % ids.SLICES, "subject": KEY, "key": KEY} | {
            "request_hash": b"",
            "occurred_at": self.now,
            "actor": _ACTOR,
            "traceparent": None,
            "data": "{}",
            "event_id": ids.new_id(self.now),
        }


def _key(row: "asyncpg.Record") -> OrderKey:
    return OrderKey(row["order_id"], row["created_at"], row["shard"])


async def occasions(connection: "Connection") -> dict[str, Occasion]:
    """By the names of the statements; none in a shop without orders."""
    facts = await Facts.of(connection)
    if facts is None:
        return {}
    found = [
        *_placing(facts),
        *_of_orders(facts),
        *_of_stock(facts),
        *_of_products(facts),
        *_of_customers(facts),
        *_of_payments(facts),
        *_of_the_projector(facts),
        *_of_the_relay(facts),
    ]
    return {one.statement.name: one for one in found}


def _placing(facts: Facts) -> list[Occasion]:
    order = ids.new_order_key(facts.buyer, facts.now)
    values = {
        **facts.command,
        **order._asdict(),
        "slice": order.shard % ids.SLICES,
        "order_text": ids.to_text(order.order_id),
        "created_text": clock.to_text(facts.now),
        "user_id": facts.buyer,
        "user_text": str(facts.buyer),
        "currency": "USD",
        "product_ids": facts.products,
        "product_texts": [ids.to_text(product) for product in facts.products],
        "quantities": [1] * LINES,
        "seen_prices": [None] * LINES,
        "agreed": False,
        "adjustments": "[]",
        "adjusted_amount": 0,
        "amount_max": _AMOUNT_MAX,
        "status": "confirmed",
        "payment_status": "on_account",
        "payment_method": None,
        "shipping_address_id": None,
        "expires_at": None,
        "expires_text": None,
    }
    return [Occasion(PLACE, values), Occasion(repository.REPLAY, {**facts.command, "key": USED_KEY})]


def _of_orders(facts: Facts) -> list[Occasion]:
    this_month = clock.month_of(facts.now)
    reader = {"user_id": facts.owner, "any_owner": False}
    page = {
        "user_id": facts.buyer,
        "status": "delivered",
        "from_at": clock.add_months(this_month, 1 - queries.MONTHS_PER_PAGE_MAX),
        "before_at": facts.now,
        "before_id": _LAST,
        "limit": PAGE,
    }
    changed = {
        "status": "shipped",
        "payment_status": "on_account",
        "total_amount": 100,
        "captured_amount": 0,
        "refunded_amount": 0,
        "tracking": None,
        "cancel_reason": None,
        "version": facts.version + 1,
        "line_nos": [1],
        "shipped_quantities": [0],
        "returned_quantities": [0],
        "product_ids": facts.products[:1],
        "on_hand_deltas": [0],
        "reserved_deltas": [0],
        "type": "order.shipped",
    }
    summary = {"status": "pending", "payment_status": None, "currency": None, "from_id": UUID(int=0)}
    report = {
        "first_on": (facts.now - timedelta(days=DAYS)).date(),
        "end_on": (facts.now + timedelta(days=1)).date(),
        "currency": "USD",
    }
    return [
        Occasion(
            repository.GET_EVENTS, {**facts.command, **reader, "after_version": 0, "limit": repository.ALL_EVENTS}
        ),
        Occasion(queries.LIST_ORDERS, page),
        Occasion(queries.LIST_ORDERS_BY_STATUS, page),
        Occasion(repository.LOCK, {**facts.command, **reader, "version": facts.version + 1}),
        Occasion(repository.LOCK_ORDER, facts.command),
        Occasion(ADVANCE, {**facts.command, **changed}),
        Occasion(repository.GET_EXPIRED, {"now": facts.now, "limit": 500}),
        Occasion(repository.LOCK_EXPIRED, {**facts.expired._asdict(), "now": facts.now}),
        *(
            Occasion(statement, {**summary, "before_id": _LAST, "walked": PAGE, "limit": PAGE})
            for statement in (summaries.LIST_SUMMARIES, summaries.LIST_SUMMARIES_BY_STATUS)
        ),
        *(Occasion(statement, report) for statement in reports.STATEMENTS.values()),
    ]


def _of_stock(facts: Facts) -> list[Occasion]:
    product = {"product_id": facts.products[0]}
    change = {"delta": 1, "reason": "r", "created_at": facts.now, "amount_max": _AMOUNT_MAX}
    return [
        Occasion(queries.GET_INVENTORY, product),
        Occasion(repository.ADJUST, {**facts.command, **product, **change}),
        Occasion(repository.GET_MOVEMENT, {**product, "subject": KEY, "key": USED_KEY}),
    ]


def _of_products(facts: Facts) -> list[Occasion]:
    product = facts.products[0]
    filters = {"active": True, "currency": None, "price_from": None, "price_to": None}
    page = {**filters, "after_id": None, "walk": PAGE + 1, "limit": PAGE + 1}
    written = {
        "name": "Pot",
        "description": "",
        "price": 1,
        "currency": "USD",
        "active": True,
        "version": 2,
        "updated_at": facts.now,
        "type": "product.changed",
    }
    searched = {
        "q": "teapot",
        "limit": PAGE,
        "candidates": catalog_queries.CANDIDATES_MAX,
        "spelled_characters": catalog_queries.SPELLED_CHARACTERS_MAX,
    }
    return [
        Occasion(catalog.GET_PRODUCT, {"product_id": product}),
        Occasion(catalog.LOCK_PRODUCTS, {"product_ids": facts.products}),
        Occasion(catalog.PUT_PRODUCT, {**facts.command, **written, "product_id": product}),
        Occasion(catalog.LIST_NEWEST, {**page, "from_id": _LAST}),
        Occasion(catalog.LIST_BY_NAME, {**page, "from_id": UUID(int=0), "from_name": ""}),
        Occasion(catalog.SEARCH, {**filters, **searched}),
    ]


def _of_customers(facts: Facts) -> list[Occasion]:
    shard = ids.shard_of(facts.buyer)
    values = {
        "user_id": facts.buyer,
        "shard": shard,
        "slice": shard % ids.SLICES,
        "version": 3,
        "person": sealed(Person()),
        "destination": sealed(Destination("A", ("Street",), "City", None, None, "GB", None)),
        "address_id": facts.address_id,
        "key": KEY,
        "request_hash": b"",
        "replaced_by": None,
        **dict.fromkeys(("created_at", "updated_at", "retired_at"), facts.now),
    }
    statements = (
        *(customers.GET_PROFILE, customers.PUT_PROFILE, customers.ERASE_PROFILE, customers.LOCK_CUSTOMER),
        *(customers.GET_ADDRESS, customers.RETIRE_ADDRESS, customers.DELETE_ADDRESSES),
        *(customers.LIST_ADDRESSES, customers.GET_HELD, customers.EXPORT),
    )
    added = Occasion(customers.ADD_ADDRESS, {**values, "address_id": ids.new_id(facts.now)})
    return [added, *(Occasion(statement, values) for statement in statements)]


def _of_payments(facts: Facts) -> list[Occasion]:
    fresh = ids.new_order_key(facts.buyer, facts.now)
    payment = {
        "user_id": facts.owner,
        "status": "authorized",
        "provider": "sandbox",
        "payment_method": "pm",
        "currency": "USD",
        "amount": 100,
        "order_version": 1,
        "updated_at": facts.now,
        "reference": "r",
        "failure": None,
        "version": 2,
        "type": "payment.authorized",
        **dict.fromkeys(("authorized_amount", "captured_amount", "refunded_amount"), 0),
    }
    step = {"number": 2, "kind": "capture", "final": True, "asked_at": facts.now, "state": "done", "error": None}
    values = {**facts.command, **payment, **step, "attempts": 1, "due_in_seconds": 1.0}
    keys = {"order_ids": [facts.order.order_id], "created_ats": [facts.order.created_at], "shards": [facts.order.shard]}
    of_one = (
        *(payments.GET_PAYMENT, payments.ADD_EVENT, payments.SET_REFERENCE, payments.END_STEP),
        *(payments.POSTPONE_STEP, payments.UNCLAIM_STEP, payments.HASTEN_STEP, payments.GET_STEPS),
    )
    return [
        *(Occasion(statement, values) for statement in of_one),
        Occasion(payments.ADD_STEP, {**values, "number": 3}),
        Occasion(payments.ADD_PAYMENT, {**values, **fresh._asdict()}),
        Occasion(payments.LOCK_PAYMENTS, keys),
        Occasion(payments.CLAIM_STEPS, {"limit": 8, "lease_seconds": 30.0}),
        Occasion(payments.OLDEST_DUE, {}),
    ]


def _of_the_projector(facts: Facts) -> list[Occasion]:
    count = len(facts.young)
    orders = {
        "order_ids": [key.order_id for key in facts.young],
        "created_ats": [key.created_at for key in facts.young],
        "shards": [key.shard for key in facts.young],
        "counted_versions": [0] * count,
        "versions": [1] * count,
    }
    products = {
        "product_ids": facts.products,
        "names": ["Other"] * LINES,
        "prices": [1] * LINES,
        "currencies": ["USD"] * LINES,
        "actives": [True] * LINES,
        "versions": [2] * LINES,
    }
    today = facts.now.date()
    added = Deltas(products={(today, "USD", product): [1, 1] for product in facts.products})
    inbox = {"consumer": repository.INBOX_CONSUMER, "topic": ORDERS_TOPIC, "versions": [2**40] * count}
    keys = [str(key.order_id) for key in facts.young]
    return [
        Occasion(repository.INBOX.advance, {**inbox, "keys": keys}),
        Occasion(repository.COPY_PRODUCTS, products),
        Occasion(rollups.READ_NEW, orders),
        Occasion(rollups.ADD, dict(rollups.records(added))),
    ]


def _of_the_relay(facts: Facts) -> list[Occasion]:
    slices = list(SLICES)
    rows = {"slices": slices, "rows": BATCH}
    gone = {
        table: {"slices": [slice_ for slice_, _ in found], "positions": [position for _, position in found]}
        for table, found in facts.waiting.items()
    }
    held = {"outboxes": [queue.name for queue in _QUEUES for _ in slices], "slices": slices * len(_QUEUES)}
    beat = {"relay": KEY, "outboxes": [queue.name for queue in _QUEUES], "seconds": 3.0, "given_outboxes": []}
    return [
        *(Occasion(outbox.read, rows) for outbox in OUTBOXES),
        *(Occasion(outbox.delete, gone[outbox.table]) for outbox in OUTBOXES),
        *(Occasion(queue.read, rows) for queue in INVALIDATIONS),
        *(Occasion(queue.delete, gone[queue.table]) for queue in INVALIDATIONS),
        Occasion(looking(_QUEUES), held),
        Occasion(beating(_QUEUES), {**beat, "slices": []}),
    ]
