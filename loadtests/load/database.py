"""What PostgreSQL counts: its work by statement (the extension pg_stat_statements), and its upkeep."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import asyncpg

from loadtests.load.shop import LOOK_SECONDS, Shop, patience
from services.embedded.addresses import REPORTS_ROLE, Addresses
from services.embedded.processes import PROCESSES

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

_PROCESS_OF: Final = {process.role: process.name for process in PROCESSES} | {REPORTS_ROLE: "orders-api"}
# The name that services.common.db puts at the end of each statement.
_NAME: Final = r"/\* (\w+) \*/\s*$"
_WORK: Final = f"""
SELECT r.rolname AS role, substring(s.query FROM '{_NAME}') AS statement, sum(s.calls)::bigint AS calls,
       sum(s.total_exec_time) AS exec_ms, sum(s.shared_blks_hit)::bigint AS blocks_hit,
       sum(s.shared_blks_read)::bigint AS blocks_read, sum(s.wal_bytes)::bigint AS wal_bytes
FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid
WHERE s.dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND s.query ~ '{_NAME}'
GROUP BY 1, 2
"""
_UPKEEP: Final = """
SELECT c.num_done AS checkpoints, c.num_timed AS checkpoints_timed, c.num_requested AS checkpoints_requested,
       t.autovacuums, t.autoanalyzes, w.wal_bytes::bigint AS wal_bytes
FROM pg_stat_checkpointer c, pg_stat_wal w,
     (SELECT sum(autovacuum_count)::bigint AS autovacuums, sum(autoanalyze_count)::bigint AS autoanalyzes
      FROM pg_stat_all_tables) t
"""
_MONTHS: Final = "SELECT DISTINCT month FROM orders.months WHERE parent = 'orders' ORDER BY month"


@dataclass(frozen=True)
class Work:
    """Of a statement, in PostgreSQL alone: without the way there and back, and without waiting for a connection."""

    calls: int = 0
    exec_ms: float = 0.0
    blocks_hit: int = 0
    blocks_read: int = 0
    wal_bytes: int = 0

    def since(self, before: "Work") -> "Work":
        """What has come since."""
        return Work(
            self.calls - before.calls,
            self.exec_ms - before.exec_ms,
            self.blocks_hit - before.blocks_hit,
            self.blocks_read - before.blocks_read,
            self.wal_bytes - before.wal_bytes,
        )


@dataclass(frozen=True)
class Counts:
    """As they stand: work by process and statement, None where nobody counts it; upkeep by its kind; the months."""

    work: Mapping[tuple[str, str], Work] | None
    upkeep: Mapping[str, int]
    months: frozenset[str]

    def work_since(self, before: Self) -> dict[tuple[str, str], Work] | None:
        """What has come since, None where nobody counts it."""
        if self.work is None or before.work is None:
            return None
        return {key: found.since(before.work.get(key, Work())) for key, found in self.work.items()}

    def upkeep_since(self, before: Self) -> dict[str, int]:
        """How often, since."""
        return {kind: count - before.upkeep[kind] for kind, count in self.upkeep.items()}


async def watched(shop: Shop) -> str | None:
    """Work is counted from now on, also on a replica; else why it is not, for people."""
    async with shop.owned() as connection:
        try:
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await connection.fetchval("SELECT count(*) FROM pg_stat_statements(FALSE)")
        except asyncpg.PostgresError as error:
            return f"No blocks and no WAL by statement: pg_stat_statements does not count here ({error})."
    async with _replica(shop) as replica, patience("the replica does not know pg_stat_statements"):
        while replica and not await replica.fetchval("SELECT to_regclass('pg_stat_statements') IS NOT NULL"):
            await asyncio.sleep(LOOK_SECONDS)  # until it has replayed that
    return None


async def counts(shop: Shop, *, work: bool) -> Counts:
    """As they stand now; of `work` too when it is watched."""
    async with shop.owned() as connection:
        upkeep = await connection.fetchrow(_UPKEEP)
        months = frozenset(row["month"] for row in await connection.fetch(_MONTHS))
        done = await _work(connection) if work else None
    async with _replica(shop) as replica:
        if replica and done is not None:
            done |= await _work(replica)
    assert upkeep is not None  # noqa: S101 # each of them is one row
    return Counts(done, dict(upkeep), months)


async def _work(connection: "Connection") -> dict[tuple[str, str], Work]:
    rows = [dict(row) for row in await connection.fetch(_WORK)]
    of_ours = [row for row in rows if row["role"] in _PROCESS_OF]  # operators run some of the same
    return {(_PROCESS_OF[row.pop("role")], row.pop("statement")): Work(**row) for row in of_ours}


@asynccontextmanager
async def _replica(shop: Shop) -> "AsyncIterator[Connection | None]":
    """A connection that may read everything there, None when the stack has no replica."""
    url = Addresses.running(shop.settings).replica_as_owner
    if url is None:
        yield None
        return
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()
