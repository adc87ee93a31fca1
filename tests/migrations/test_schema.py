"""The schema: up and down, no drift from the tables in code, append-only events, and who may do what."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator
from datetime import date
from typing import TYPE_CHECKING

import asyncpg
import pytest
import sqlalchemy as sa
from alembic import command
from sqlalchemy.dialects import postgresql

from services.catalog import tables as catalog
from services.cli import migrate
from services.common import clock, ids
from services.customers import tables as customers
from services.embedded.supervisor import Stack
from services.orders import tables as orders
from services.payments import tables as payments
from services.relay import tables as relay
from tests.conftest import AsRole, with_database

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

PARTITIONED = ("orders", "order_items", "order_events")
DENIED = asyncpg.InsufficientPrivilegeError
REFUSED = asyncpg.RestrictViolationError


@pytest.fixture
async def empty_url(stack: Stack) -> AsyncIterator[str]:
    """A database without a schema."""
    name = f"empty_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(stack.addresses.postgres)
    await owner.execute(f"CREATE DATABASE {name}")
    yield with_database(stack.addresses.postgres, name)
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


async def test_up_down_and_up_again_leaves_no_drift(empty_url: str) -> None:
    configuration = migrate.configuration(empty_url)
    await asyncio.to_thread(migrate.upgrade, empty_url)
    connection = await asyncpg.connect(empty_url)
    await connection.execute("SELECT orders.create_month('2026-11-01'), orders.create_month('2026-12-01')")
    await asyncio.to_thread(command.check, configuration)  # raises on any difference; partitions are out of sight
    await asyncio.to_thread(command.downgrade, configuration, "base")
    left = await connection.fetchval(
        "SELECT count(*) FROM pg_namespace WHERE nspname IN ('orders', 'catalog', 'customers', 'payments', 'relay')"
    )
    assert left == 0
    await asyncio.to_thread(migrate.upgrade, empty_url)
    await asyncio.to_thread(command.check, configuration)
    await connection.close()


async def test_summaries_made_before_they_had_a_due_time_are_due_since_then(
    owner: "Connection", database_url: str
) -> None:
    configuration = migrate.configuration(database_url)
    await asyncio.to_thread(command.downgrade, configuration, "0012")
    as_of = await owner.fetchval("UPDATE orders.summary_refresh SET as_of = now() RETURNING as_of")
    await asyncio.to_thread(migrate.upgrade, database_url)
    assert await owner.fetchval("SELECT due_at FROM orders.summary_refresh") == as_of


async def test_two_migrations_at_once_do_what_one_does(empty_url: str) -> None:
    process = "import sys; from services.cli import migrate; migrate.upgrade(sys.argv[1])"
    running = [await asyncio.create_subprocess_exec(sys.executable, "-c", process, empty_url) for _ in range(2)]
    assert [await process.wait() for process in running] == [0, 0]


async def test_checks_in_the_database_are_those_in_code(owner: "Connection") -> None:
    # Autogenerate does not compare CHECK constraints.
    found = {
        (row["schema"], row["table"], row["name"])
        for row in await owner.fetch(
            "SELECT n.nspname AS schema, c.relname AS table, k.conname AS name FROM pg_constraint k"
            " JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
            " WHERE k.contype = 'c' AND NOT c.relispartition"
            " AND n.nspname IN ('orders', 'catalog', 'customers', 'payments', 'relay')"
        )
    }
    preparer = postgresql.dialect().identifier_preparer  # type: ignore[no-untyped-call] # SQLAlchemy has no types here
    declared = {
        (table.schema, table.name, preparer.format_constraint(constraint))
        for metadata in (orders.metadata, catalog.metadata, customers.metadata, payments.metadata, relay.metadata)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, sa.CheckConstraint)
    }
    assert found == declared


async def plant_event(owner: "Connection") -> None:
    """An event in this month and one in the next."""
    now = clock.now()
    for at in (now, clock.add_months(clock.month_of(now), 1)):
        await owner.execute(
            "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor,"
            " occurred_at) VALUES ($1, $2, $3, 1, $4, 'order.placed', '{}', 'process:test', $2)",
            *(*ids.new_order_key(ids.new_id(now), at), ids.new_id(at)),
        )


async def event_tables(owner: "Connection") -> list[str]:
    """The parent and every partition, a month made only now among them."""
    await owner.execute("SELECT orders.create_month((now() + interval '4 months')::date)")
    partitions = await owner.fetch("SELECT partition FROM orders.months WHERE parent = 'order_events'")
    assert len(partitions) >= 5
    return ["order_events", *(row["partition"] for row in partitions)]


async def test_not_even_the_owner_changes_or_removes_an_event_in_any_partition(owner: "Connection") -> None:
    await plant_event(owner)
    filled = await owner.fetch("SELECT DISTINCT tableoid::regclass::text AS name FROM orders.order_events")
    assert len(filled) == 2
    for table in (row["name"] for row in filled):
        with pytest.raises(REFUSED, match="append-only: UPDATE"):
            await owner.execute(f"UPDATE {table} SET type = 'x'")  # noqa: S608 # a name from the catalogue
        with pytest.raises(REFUSED, match="append-only: DELETE"):
            await owner.execute(f"DELETE FROM {table}")  # noqa: S608
    for table in await event_tables(owner):
        with pytest.raises(REFUSED, match="append-only: TRUNCATE"):
            await owner.execute(f"TRUNCATE orders.{table}")


@pytest.mark.parametrize("role", migrate.ROLES)
async def test_no_process_may_touch_a_partition_or_change_an_event(
    owner: "Connection", as_role: AsRole, role: str
) -> None:
    await plant_event(owner)
    connection = await asyncpg.connect(as_role(role))
    tables = await event_tables(owner)
    for table in tables:
        for statement in ("UPDATE orders.{} SET type = 'x'", "DELETE FROM orders.{}", "TRUNCATE orders.{}"):
            with pytest.raises(DENIED):
                await connection.execute(statement.format(table))
    if role != "orders_inspect":
        for table in tables[1:]:
            with pytest.raises(DENIED):
                await connection.execute(f"SELECT * FROM orders.{table}")  # noqa: S608
    await connection.close()


PROCESSES = ("orders_maintenance", "orders_projector")  # that change orders as nobody's command


# Everything a process may do to a table; what is not here is refused.
GRANTS = {
    ("catalog_api", "catalog.invalidations"): {"INSERT"},
    ("catalog_api", "catalog.outbox"): {"INSERT"},
    ("catalog_api", "catalog.products"): {"SELECT", "INSERT", "UPDATE"},
    ("customers_api", "customers.addresses"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("customers_api", "customers.invalidations"): {"INSERT"},
    ("customers_api", "customers.profiles"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_api", "orders.idempotency_keys"): {"SELECT", "INSERT"},
    ("orders_api", "orders.invalidations"): {"INSERT"},
    ("orders_api", "orders.inventory"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_api", "orders.inventory_movements"): {"SELECT", "INSERT"},
    ("orders_api", "orders.months"): {"SELECT"},
    ("orders_api", "orders.order_events"): {"SELECT", "INSERT"},
    ("orders_api", "orders.order_items"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_api", "orders.order_summaries"): {"SELECT"},
    ("orders_api", "orders.orders"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_api", "orders.outbox"): {"INSERT"},
    ("orders_api", "orders.products"): {"SELECT"},
    ("orders_api", "orders.summary_refresh"): {"SELECT"},
    ("orders_maintenance", "orders.idempotency_keys"): {"SELECT", "DELETE"},
    ("orders_maintenance", "orders.inbox"): {"SELECT", "DELETE"},
    ("orders_maintenance", "orders.invalidations"): {"INSERT"},
    ("orders_maintenance", "orders.inventory"): {"SELECT"},
    ("orders_maintenance", "orders.months"): {"SELECT"},
    ("orders_maintenance", "orders.order_events"): {"SELECT", "INSERT"},
    ("orders_maintenance", "orders.order_items"): {"SELECT", "UPDATE"},
    ("orders_maintenance", "orders.order_summaries"): {"SELECT", "MAINTAIN"},
    ("orders_maintenance", "orders.orders"): {"SELECT", "UPDATE"},
    ("orders_maintenance", "orders.outbox"): {"INSERT"},
    ("orders_maintenance", "orders.summary_refresh"): {"SELECT", "UPDATE"},
    ("orders_projector", "orders.inbox"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_projector", "orders.invalidations"): {"INSERT"},
    ("orders_projector", "orders.inventory"): {"SELECT"},
    ("orders_projector", "orders.order_events"): {"SELECT", "INSERT"},
    ("orders_projector", "orders.order_items"): {"SELECT", "UPDATE"},
    ("orders_projector", "orders.orders"): {"SELECT", "UPDATE"},
    ("orders_projector", "orders.orders_by_status"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_projector", "orders.outbox"): {"INSERT"},
    ("orders_projector", "orders.products"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_projector", "orders.sales_daily"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_projector", "orders.sales_daily_product"): {"SELECT", "INSERT", "UPDATE"},
    ("orders_reports", "orders.heartbeat"): {"SELECT"},
    ("orders_reports", "orders.orders_by_status"): {"SELECT"},
    ("orders_reports", "orders.sales_daily"): {"SELECT"},
    ("orders_reports", "orders.sales_daily_product"): {"SELECT"},
    ("outbox_relay", "catalog.invalidations"): {"SELECT", "DELETE"},
    ("outbox_relay", "catalog.outbox"): {"SELECT", "DELETE"},
    ("outbox_relay", "customers.invalidations"): {"SELECT", "DELETE"},
    ("outbox_relay", "orders.invalidations"): {"SELECT", "DELETE"},
    ("outbox_relay", "orders.order_events"): {"SELECT"},
    ("outbox_relay", "orders.outbox"): {"SELECT", "DELETE"},
    ("outbox_relay", "payments.outbox"): {"SELECT", "DELETE"},
    ("outbox_relay", "relay.members"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("outbox_relay", "relay.parked"): {"SELECT", "INSERT"},
    ("outbox_relay", "relay.slices"): {"SELECT", "UPDATE"},
    ("payments_worker", "payments.inbox"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
    ("payments_worker", "payments.outbox"): {"INSERT"},
    ("payments_worker", "payments.payments"): {"SELECT", "INSERT", "UPDATE"},
    ("payments_worker", "payments.steps"): {"SELECT", "INSERT", "UPDATE", "DELETE"},
}


async def test_grants_are_those_written_here(owner: "Connection") -> None:
    rows = await owner.fetch(
        "SELECT a.grantee::regrole::text AS role, n.nspname || '.' || c.relname AS table, a.privilege_type AS privilege"
        " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN LATERAL aclexplode(c.relacl) a"
        " WHERE n.nspname IN ('orders', 'catalog', 'customers', 'payments', 'relay') AND a.grantee <> c.relowner"
    )
    found: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        found.setdefault((row["role"], row["table"]), set()).add(row["privilege"])
    assert found == GRANTS


async def test_of_the_columns_of_stock_each_process_changes_only_its_own(owner: "Connection") -> None:
    rows = await owner.fetch(
        "SELECT a.grantee::regrole::text AS role, c.relname || '.' || t.attname AS column, a.privilege_type"
        " FROM pg_attribute t JOIN pg_class c ON c.oid = t.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace"
        " CROSS JOIN LATERAL aclexplode(t.attacl) a"
        " WHERE n.nspname IN ('orders', 'catalog', 'customers', 'payments', 'relay')"
    )
    moved = [(role, f"inventory.{c}", "UPDATE") for role in PROCESSES for c in ("on_hand", "reserved", "version")]
    copied = [("orders_projector", "inventory.product_version", "UPDATE")]
    assert sorted(tuple(row) for row in rows) == sorted(
        [*moved, *copied, ("orders_maintenance", "heartbeat.at", "UPDATE")]
    )


async def test_a_month_is_made_once_and_is_like_its_siblings(owner: "Connection") -> None:
    month = date(2031, 5, 17)
    assert await owner.fetchval("SELECT orders.create_month($1)", month)
    assert not await owner.fetchval("SELECT orders.create_month($1)", month)
    for parent in PARTITIONED:
        indexes = await owner.fetch(
            "SELECT tablename, count(*) AS n FROM pg_indexes WHERE tablename ~ $1 GROUP BY tablename",
            rf"^{parent}_\d{{4}}_\d\d$",
        )
        assert len({row["n"] for row in indexes}) == 1
        checks = await owner.fetchval(
            "SELECT count(*) FROM pg_constraint WHERE conrelid = $1::text::regclass AND conname = 'month'",
            f"orders.{parent}_2031_05",
        )
        assert checks == 0  # it was only there so that ATTACH need not scan


async def test_rows_go_to_their_month_to_the_millisecond(owner: "Connection") -> None:
    first = clock.month_of(clock.now())
    for ms, month in ((-1, clock.add_months(first, -1)), (0, first), (1, first)):
        at = clock.from_ms(clock.to_ms(first) + ms)
        key = ids.new_order_key(ids.new_id(at), at)
        await owner.execute(
            "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor,"
            " occurred_at) VALUES ($1, $2, $3, 1, $4, 'order.placed', '{}', 'process:test', $2)",
            *(*key, ids.new_id(at)),
        )
        table = await owner.fetchval(
            "SELECT tableoid::regclass::text FROM orders.order_events WHERE order_id = $1", key.order_id
        )
        assert table == f"orders.order_events_{month:%Y_%m}"


@pytest.mark.parametrize("wrong", ["version", "time", "shard"])
async def test_an_id_that_does_not_carry_its_month_and_shard_is_refused(owner: "Connection", wrong: str) -> None:
    now = clock.now()
    key = ids.new_order_key(ids.new_id(now), now)
    order_id, created_at, shard = key
    if wrong == "version":
        order_id = type(order_id)(int=order_id.int & ~(0xF << 76) | 4 << 76)
    elif wrong == "time":
        created_at = clock.from_ms(clock.to_ms(now) - 1)
    else:
        shard = (shard + 1) % 4096
    with pytest.raises(asyncpg.CheckViolationError):
        await owner.execute(
            "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor,"
            " occurred_at) VALUES ($1, $2, $3, 1, $4, 'order.placed', '{}', 'process:test', $2)",
            *(order_id, created_at, shard, ids.new_id(now)),
        )
