"""Every statement that somebody waits for, on 200,000 orders of two years: how it finds its rows, and what that costs.

Bounds are twice what was found or more; most of all where rows are written, which also looks for room. They tell an
index from reading a table, not one page more from one less; what a statement reads row by row is in the other files.
"""

import importlib
import inspect
import json
import pkgutil
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

import services
from loadtests.explain import Plan
from loadtests.occasions import BATCH, DAYS, PAGE, Occasion, occasions
from services.catalog.queries import CANDIDATES_MAX
from services.common.db import Statement
from services.embedded.supervisor import Stack
from services.orders.invariants import OF_PAGES
from services.orders.queries import MONTHS_PER_PAGE_MAX
from services.orders.rules import INVARIANTS, Scope
from services.orders.seed_model import CURRENCIES
from tests.conftest import with_database
from tests.plans import large

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

ONE: Final = 1
ALL_MONTHS: Final = large.MONTHS + 4  # with those that are made ahead
SMALL: Final = {"heartbeat", "summary_refresh", "members", "slices"}  # a row, or some for each relay: for ever
THE_ORDER: Final = {"orders_pkey", "orders_created_at_order_id_idx"}  # either finds the one row


@dataclass(frozen=True)
class Guard:
    """What a statement may do: the indexes it may read, and how much it may look at.

    `rows` are those that it finds or throws away, `sorts` those of its largest sort, `partitions` those of any table.
    """

    indexes: set[str]
    blocks: int
    rows: int
    partitions: int = 0
    sorts: int = 100


STOCK = {"pk_products", "pk_inventory"}
QUEUE = {"pk_outbox", "pk_parked", "pk_invalidations"}
ADDRESSES = {"pk_addresses", "uq_addresses_user_id_key"}
STEPS = {"pk_steps"}
SUMMARIES = {"ix_order_summaries_order_id", "ix_order_summaries_status_order_id"}
SEARCH = {"ix_products_by_name", "ix_products_name_words", "ix_products_all_words", "ix_products_spelling"}

GUARDS: Final[Mapping[str, Guard]] = {
    # orders-api
    "place_order": Guard(STOCK, blocks=300, rows=9),
    "replay": Guard({"pk_idempotency_keys", "order_events_pkey"}, blocks=15, rows=2, partitions=ONE),
    "get_events": Guard({*THE_ORDER, "order_events_pkey"}, blocks=25, rows=6, partitions=ONE),
    "lock_order": Guard(THE_ORDER, blocks=200, rows=2, partitions=ONE),
    "advance_order": Guard({*THE_ORDER, "order_items_pkey", *STOCK}, blocks=300, rows=6, partitions=ONE),
    # A page of 20 of a buyer who orders often lies in the last months.
    "list_orders": Guard(
        {"orders_user_id_created_at_order_id_idx", "order_events_pkey"}, blocks=200, rows=200, partitions=4
    ),
    # The newest of one status may lie in any of them, so the first of each month is looked at.
    "list_orders_by_status": Guard(
        {"orders_user_id_status_created_at_order_id_idx", "order_events_pkey"},
        blocks=300,
        rows=200,
        partitions=MONTHS_PER_PAGE_MAX,
    ),
    "get_inventory": Guard(STOCK, blocks=6, rows=1),
    "adjust_stock": Guard(STOCK, blocks=400, rows=3),
    "get_movement": Guard({*STOCK, "uq_inventory_movements_product_id_subject_key"}, blocks=15, rows=2),
    "list_summaries": Guard(SUMMARIES, blocks=15, rows=21),
    "list_summaries_by_status": Guard(SUMMARIES, blocks=30, rows=21),
    "report_by_day": Guard({"pk_sales_daily"}, blocks=100, rows=len(CURRENCIES) * (DAYS + 2)),
    "report_by_month": Guard({"pk_sales_daily"}, blocks=100, rows=len(CURRENCIES) * (DAYS + 2)),
    # Staff's own, on the replica: a row for each product and day, added up and put in order.
    "report_by_product": Guard({"pk_sales_daily_product"}, blocks=2_000, rows=5 * large.PRODUCTS, sorts=large.PRODUCTS),
    "report_by_status": Guard({"pk_orders_by_status"}, blocks=100, rows=300, sorts=300),
    # catalog-api
    "get_product": Guard(STOCK, blocks=6, rows=1),
    "lock_products": Guard(STOCK, blocks=25, rows=3),
    "put_product": Guard(STOCK, blocks=400, rows=1),
    "list_products_newest": Guard({"ix_products_newest", *STOCK}, blocks=150, rows=42),
    "list_products_by_name": Guard({"ix_products_by_name", *STOCK}, blocks=150, rows=42),
    "search_products": Guard({*SEARCH, *STOCK}, blocks=1_000, rows=2 * CANDIDATES_MAX + 2 * PAGE, sorts=CANDIDATES_MAX),
    # customers-api
    "get_profile": Guard({"pk_profiles"}, blocks=6, rows=1),
    "put_profile": Guard({"pk_profiles"}, blocks=200, rows=1),
    "erase_profile": Guard({"pk_profiles"}, blocks=200, rows=0),
    "lock_customer": Guard({"pk_profiles"}, blocks=10, rows=1),
    "add_address": Guard(set(), blocks=200, rows=0),
    "get_address": Guard(ADDRESSES, blocks=10, rows=1),
    "retire_address": Guard(ADDRESSES, blocks=100, rows=1),
    "list_addresses": Guard(ADDRESSES, blocks=20, rows=3),
    "delete_addresses": Guard(ADDRESSES, blocks=30, rows=3),
    "get_held": Guard(ADDRESSES, blocks=20, rows=3),
    "export_customer": Guard({"pk_profiles", *ADDRESSES}, blocks=25, rows=4),
    # payments-worker
    "get_payment": Guard({"payments_pkey"}, blocks=10, rows=1, partitions=ONE),
    "lock_payments": Guard({"payments_pkey"}, blocks=15, rows=1, partitions=ONE),
    "add_payment": Guard(set(), blocks=300, rows=0),
    "add_payment_event": Guard({"payments_pkey"}, blocks=200, rows=1, partitions=ONE),
    "set_payment_reference": Guard({"payments_pkey"}, blocks=25, rows=1, partitions=ONE),
    "add_step": Guard({"payments_pkey", *STEPS}, blocks=50, rows=3, partitions=ONE),
    # Eight steps, each of a month of its own: to find it, to change it, its payment twice, and a void that waits.
    "claim_steps": Guard({"payments_pkey", "ix_steps_due_at", *STEPS}, blocks=400, rows=8 * 6, partitions=8),
    "end_step": Guard(STEPS, blocks=30, rows=1),
    "postpone_step": Guard(STEPS, blocks=30, rows=1),
    "unclaim_step": Guard(STEPS, blocks=30, rows=1),
    "hasten_step": Guard(STEPS, blocks=30, rows=2),
    "get_steps": Guard(STEPS, blocks=12, rows=2),
    "oldest_due_step": Guard({"ix_steps_due_at"}, blocks=10, rows=1),
    # orders-projector and orders-maintenance, which buyers of the same products and orders wait for. 50 rows at once.
    "lock_order_by_id": Guard(THE_ORDER, blocks=10, rows=1, partitions=ONE),
    "inbox_advance": Guard(set(), blocks=2_000, rows=0),
    "copy_products": Guard(STOCK, blocks=250, rows=6),
    "read_new_events": Guard({"order_events_pkey"}, blocks=400, rows=50, partitions=2),
    "add_to_rollups": Guard(set(), blocks=50, rows=0),
    # Of most months one block is looked at: the root of an index without rows.
    "get_expired": Guard({"orders_expires_at_idx"}, blocks=150, rows=2 * large.DUE, partitions=ALL_MONTHS),
    "lock_expired": Guard(
        {*THE_ORDER, "orders_expires_at_idx", "orders_created_at_idx"}, blocks=12, rows=1, partitions=ONE
    ),
    # outbox-relay: 50 rows of each of 16 slices, and the event of each; a deletion has 50.
    "orders_outbox_read": Guard({*QUEUE, "order_events_pkey"}, blocks=8_000, rows=2 * 16 * BATCH, partitions=2),
    **{f"{name}_outbox_read": Guard(QUEUE, blocks=4_500, rows=16 * BATCH) for name in ("catalog", "payments")},
    **{
        f"{name}_invalidations_read": Guard(QUEUE, blocks=300, rows=16 * BATCH)
        for name in ("orders", "catalog", "customers")
    },
    **{f"{name}_outbox_delete": Guard(QUEUE, blocks=600, rows=2 * BATCH) for name in ("orders", "catalog", "payments")},
    **{
        f"{name}_invalidations_delete": Guard(QUEUE, blocks=600, rows=2 * BATCH)
        for name in ("orders", "catalog", "customers")
    },
    "outboxes_look": Guard(QUEUE, blocks=60, rows=6),
    "relay_beat": Guard({*QUEUE, "pk_slices", "pk_members"}, blocks=1_500, rows=400),
}

# What nobody waits for, and why it may take its time.
UNGUARDED: Final[Mapping[str, str]] = {
    "get_months": "reads the catalogue of tables, for readiness and upkeep",
    "list_partitions": "an operator's",
    "create_month": "makes tables",
    "payments_create_month": "makes tables",
    "get_summaries_as_of": "reads a table of one row",
    "claim_summaries": "changes a table of one row",
    "begin_summaries": "changes a table of one row",
    "end_summaries": "changes a table of one row",
    "lengthen_summaries_lease": "changes a table of one row",
    "refresh_summaries": "makes the view anew: tests/plans/test_summaries.py",
    "count_summaries": "counts the view, after each refresh",
    "beat": "changes a table of one row",
    "delete_keys": "upkeep, a batch at a time",
    "delete_steps": "upkeep, a batch at a time: tests/plans/test_payments.py",
    "inbox_delete": "upkeep, a batch at a time: tests/plans/test_projections.py",
    "relay_parking_turn": "takes a lock",
    **{f"{name}_outbox_park": "of what cannot be sent, for an operator" for name in ("orders", "catalog", "payments")},
    **{f"{name}_outbox_release": "an operator's" for name in ("orders", "catalog", "payments")},
    "outbox_parked": "an operator's",
    "outbox_relays": "an operator's",
    "outboxes_observe": "metrics, every few seconds: tests/plans/test_relay.py",
    "payments_standing": "an operator's",
    **{
        f"reconcile_{what}": "walks all payments, a page at a time"
        for what in ("asked", "months", "orders", "ours", "steps", "upto")
    },
}
# Functions that make statements, not at import: those they make are named above.
MAKERS: Final = {
    "services.common.db.statement",
    "services.common.inbox._statement",
    "services.customers.repository._statement",
    "services.orders.reports._report",
    "services.orders.repository.statement",
    "services.relay.leases.beating",  # relay_beat
    "services.relay.outboxes.looking",  # outboxes_look
    "services.relay.outboxes.observing",  # outboxes_observe
}
MADE_LATER: Final = {"relay_beat", "outboxes_look", "outboxes_observe"}


@pytest.fixture(scope="module")
async def connection(stack: Stack, template_database: str) -> AsyncIterator["Connection"]:
    """As the owner of a shop as tests/plans/large.py says."""
    name = f"large_{secrets.token_hex(6)}"
    server = await asyncpg.connect(stack.addresses.postgres)
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy")
    url = with_database(stack.addresses.postgres, name)
    try:
        await large.load(url)
        owner = await asyncpg.connect(url)
        await large.plant(owner)
        yield owner
        await owner.close()
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()


@pytest.fixture(scope="module")
async def found(connection: "Connection") -> dict[str, Occasion]:
    """For each statement an occasion."""
    return await occasions(connection)


@pytest.mark.parametrize("name", GUARDS)
async def test_a_statement_finds_its_rows_by_its_indexes_in_its_months(
    connection: "Connection", found: dict[str, Occasion], name: str
) -> None:
    guard = GUARDS[name]
    plan = await found[name].explained(connection)
    assert plan.scanned() <= SMALL
    assert plan.index_names() <= guard.indexes
    assert max(plan.touched().values(), default=0) <= guard.partitions
    assert plan.rows_read() <= guard.rows
    assert plan.rows_sorted() <= guard.sorts
    assert plan.buffers() <= guard.blocks


@pytest.mark.parametrize("name", [one.name for one in INVARIANTS if one.scope is Scope.PAGE and one.sql])
async def test_what_is_verified_of_a_page_reads_each_of_its_rows_once(connection: "Connection", name: str) -> None:
    page = 200
    (sql,) = (one.sql for one in INVARIANTS if one.name == name)
    transaction = connection.transaction()
    await transaction.start()
    try:
        # A histogram of one step: a page has fewer orders than that, as 2,000 of 833,000 are with a hundred steps.
        await connection.execute("SET LOCAL default_statistics_target = 1")
        await connection.execute("ANALYZE orders.orders, orders.order_items, orders.order_events")
        for setting, value in OF_PAGES.items():
            await connection.execute("SELECT set_config($1, $2, true)", setting, value)
        bounds = await connection.fetchrow(
            "SELECT date_trunc('month', created_at) AS month, date_trunc('month', created_at) + INTERVAL '1 month',"
            "       (array_agg(order_id ORDER BY order_id))[1000], (array_agg(order_id ORDER BY order_id))[1000 + $1]"
            " FROM orders.orders GROUP BY month ORDER BY month OFFSET 1 LIMIT 1",
            page,
        )
        assert bounds is not None
        found = await connection.fetchval(f"EXPLAIN (ANALYZE, VERBOSE, FORMAT JSON) {sql}", *bounds)
    finally:
        await transaction.rollback()
    plan = Plan(json.loads(found)[0]["Plan"])
    assert page <= plan.rows_read() <= 10 * page
    assert max(plan.touched().values()) == 1


def test_every_statement_has_a_guard_or_a_reason_to_have_none() -> None:
    names, makers = set[str](), set[str]()
    for info in pkgutil.walk_packages(services.__path__, "services."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            names |= {statement.name for statement in statements(value)}
            if inspect.isfunction(value) and value.__annotations__.get("return") is Statement:
                makers.add(f"{value.__module__}.{name}")
    assert makers <= MAKERS, "a function that makes a statement when it is called: name what it makes"
    assert GUARDS.keys() | UNGUARDED.keys() == names | MADE_LATER
    assert not GUARDS.keys() & UNGUARDED.keys()


def statements(value: object) -> Iterator[Statement]:
    """Those that a module has under a name: itself, in a collection, or as a member of something of ours."""
    if isinstance(value, Statement):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from statements(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from statements(one)
    elif not inspect.isclass(value) and type(value).__module__.startswith("services."):
        names = [*getattr(value, "__slots__", ()), *getattr(value, "__dict__", ())]
        for one in (getattr(value, name, None) for name in names):
            if isinstance(one, Statement):
                yield one
