"""Plans of the relay's statements: what waits is read by the primary key, whatever else there is."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from loadtests.explain import Explain
from services.common import clock, ids
from services.relay.invalidations import INVALIDATIONS, Invalidations
from services.relay.leases import beating
from services.relay.outbox import SLICES, Outbox
from services.relay.outboxes import CATALOG, ORDERS, OUTBOXES, PAYMENTS, Queue, looking, observing
from tests.plans.test_orders import plant

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

ROWS = 3200
QUEUES: Final[Sequence[Queue]] = (*OUTBOXES, *INVALIDATIONS)


@pytest.fixture(params=OUTBOXES, ids=lambda outbox: outbox.name)
async def outbox(request: pytest.FixtureRequest, owner: "Connection") -> Outbox:
    """Each outbox, with 200 rows of as many aggregates in each slice."""
    if request.param in {CATALOG, PAYMENTS}:
        await owner.execute(
            f"INSERT INTO {request.param.name}.outbox"  # noqa: S608 # a name of ours
            " (slice, aggregate_id, version, event_id, type, data, actor, occurred_at)"
            " SELECT n % 16, uuidv7(), 1, uuidv7(), 'test', '{}', 'process:test', now()"
            " FROM generate_series(1, $1) n",
            ROWS,
        )
    else:
        users = {ids.shard_of(user) % len(SLICES): user for user in (uuid.uuid4() for _ in range(1000))}
        for number in SLICES:
            keys = await plant(owner, clock.now(), user_id=users[number], count=ROWS // len(SLICES))
            await owner.copy_records_to_table(
                "outbox",
                schema_name="orders",
                columns=["shard", "slice", "order_id", "created_at", "version"],
                records=[(key.shard, number, key.order_id, key.created_at, 1) for key in keys],
            )
        await owner.execute("ANALYZE orders.order_events")
    await owner.execute(f"ANALYZE {request.param.name}.outbox")
    found = request.param
    assert isinstance(found, Outbox)
    return found


async def test_reading_takes_the_first_rows_of_each_slice_in_order(explain: Explain, outbox: Outbox) -> None:
    plan = await explain(outbox.read, slices=[1, 2, 3], rows=32)
    assert plan.indexes("outbox") == {"pk_outbox"}
    assert not plan.node_types() & {"Sort", "Incremental Sort"}
    assert plan.scanned() == set()
    of_outbox = [node for node in plan.nodes() if node.get("Relation Name") == "outbox"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in of_outbox) == 3 * 32
    assert plan.rows_read() == 3 * 32 * (2 if outbox is ORDERS else 1)  # and the event of each


async def test_deleting_finds_each_row_by_the_primary_key(
    explain: Explain, outbox: Outbox, owner: "Connection"
) -> None:
    rows = await owner.fetch(f"TABLE {outbox.name}.outbox ORDER BY position LIMIT 50")
    plan = await explain(
        outbox.delete, slices=[row["slice"] for row in rows], positions=[row["position"] for row in rows]
    )
    assert plan.indexes("outbox") == {"pk_outbox"}
    assert plan.rows_read() == 2 * 50  # by the index, and by where they are


async def test_looking_reads_the_first_row_of_one_slice(explain: Explain, outbox: Outbox) -> None:
    held = [(other.name, number) for other in OUTBOXES for number in SLICES]
    plan = await explain(looking(QUEUES), outboxes=[name for name, _ in held], slices=[number for _, number in held])
    assert plan.scanned() == set()
    assert plan.indexes("outbox") == {"pk_outbox"}
    assert plan.rows_read() == 1, f"of {outbox.name} one row says enough"


async def test_renewing_the_leases_looks_by_the_same_index(
    explain: Explain, outbox: Outbox, owner: "Connection"
) -> None:
    await owner.execute("UPDATE relay.slices SET relay = 'test'")
    names = [queue.name for queue in QUEUES]
    told: dict[str, object] = {"relay": "test", "outboxes": names, "seconds": 3.0, "given_outboxes": [], "slices": []}
    plan = await explain(beating(QUEUES), **told)
    assert plan.indexes("outbox") == {"pk_outbox"}
    of_outbox = [node for node in plan.nodes() if node.get("Relation Name") == "outbox"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in of_outbox) == 1, f"of {outbox.name} one row"


async def test_observing_counts_by_an_index(explain: Explain, outbox: Outbox) -> None:
    plan = await explain(observing(QUEUES))
    assert plan.scanned() == set()
    assert plan.indexes("outbox") == {"pk_outbox"}
    assert plan.rows_read() <= ROWS + (2 if outbox is ORDERS else 1) * len(SLICES)


async def test_plans_made_while_the_outbox_was_empty_serve_a_backlog(explain: Explain, owner: "Connection") -> None:
    await owner.execute("ALTER TABLE orders.outbox SET (autovacuum_enabled = off)")
    # Rows have come and gone: the table has pages and no rows, and that is what the planner knows.
    await owner.execute(
        "INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)"
        " SELECT n % 4096, n % 16, uuidv7(), now(), 1 FROM generate_series(1, 20000) n"
    )
    await owner.execute("DELETE FROM orders.outbox")
    await owner.execute("VACUUM (ANALYZE, TRUNCATE off) orders.outbox")
    users = {ids.shard_of(user) % len(SLICES): user for user in (uuid.uuid4() for _ in range(1000))}
    for number in SLICES:
        keys = await plant(owner, clock.now(), user_id=users[number], count=ROWS // len(SLICES))
        await owner.copy_records_to_table(
            "outbox",
            schema_name="orders",
            columns=["shard", "slice", "order_id", "created_at", "version"],
            records=[(key.shard, number, key.order_id, key.created_at, 1) for key in keys],
        )
    rows = await owner.fetch("TABLE orders.outbox ORDER BY position LIMIT 50")
    places = {"slices": [row["slice"] for row in rows], "positions": [row["position"] for row in rows]}
    assert (await explain(ORDERS.delete, **places)).rows_read() == 2 * 50
    assert (await explain(ORDERS.read, slices=list(SLICES), rows=32)).rows_read() == 2 * 32 * len(SLICES)


@pytest.mark.parametrize("queue", INVALIDATIONS, ids=lambda queue: queue.name)
async def test_invalidations_are_read_and_deleted_by_the_primary_key(
    explain: Explain, owner: "Connection", queue: Invalidations
) -> None:
    # As above: planned while the table was empty, and never analysed since.
    await owner.execute(f"ALTER TABLE {queue.table} SET (autovacuum_enabled = off)")
    columns, values = ("shard, ", "n % 4096, ") if queue.owner != "catalog" else ("", "")
    await owner.execute(
        f"INSERT INTO {queue.table} ({columns}slice, keys)"  # noqa: S608 # names of ours
        f" SELECT {values}n % 16, '{{}}' FROM generate_series(1, $1) n",
        ROWS,
    )
    read = await explain(queue.read, slices=[1, 2, 3], rows=32)
    rows = await owner.fetch(f"TABLE {queue.table} ORDER BY position LIMIT 50")
    delete = await explain(
        queue.delete,
        slices=[row["slice"] for row in rows],
        positions=[row["position"] for row in rows],
    )
    look = await explain(looking(QUEUES), outboxes=[queue.name] * len(SLICES), slices=list(SLICES))
    for plan in (read, delete, look):
        assert plan.indexes("invalidations") == {"pk_invalidations"}
        assert not plan.node_types() & {"Sort", "Incremental Sort"}
        assert plan.scanned() == set()
    assert read.rows_read() == 3 * 32
    assert delete.rows_read() == 2 * 50
    assert look.rows_read() == 1
