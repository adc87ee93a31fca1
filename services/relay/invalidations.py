"""Telling the cache what writes have replaced, again and apart from publishing, until it has heard it: docs/cache.md.

Whoever wrote has told it already, unless it died or the cache was away: this is for those times.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from prometheus_client import Counter

from services.common import db
from services.common.cache import Cache
from services.common.cached import Key
from services.common.db import Database, Row, Statement
from services.common.invalidations import keys_of
from services.common.outbox import Alarm
from services.contracts.cache import KINDS
from services.relay.leases import Leases
from services.relay.outbox import TYPES
from services.relay.relay import PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN, part_of, relay_failures_total

GATHER_SECONDS: Final = 0.05  # between two rounds: writers have told the cache themselves, so this is seldom urgent
BUSY_SECONDS: Final = 1.0  # after rows were found it looks by itself: whoever could not tell the cache may not reach us

log = structlog.get_logger()
invalidations_drained_total = Counter(
    "invalidations_drained_total", "Rows deleted: the cache was told, or they were too old to matter", ["outcome"]
)

# Index: primary key, from the start of each slice, as the outboxes are read and for the same reason.
_READ: Final = """
SELECT i.slice, i.position, i.keys::text AS keys, i.created_at
FROM unnest(:slices) AS s (slice)
CROSS JOIN LATERAL (
    SELECT * FROM {table} i WHERE i.slice = s.slice ORDER BY i.position LIMIT :rows
) i
"""

# Index: primary key, one read a row; OFFSET 0 as in the deletion of an outbox's rows.
_DELETE: Final = """
DELETE FROM {table} WHERE ctid = ANY (ARRAY(
    SELECT i.row_id FROM unnest(:slices, :positions) AS d (slice, position)
    CROSS JOIN LATERAL (
        SELECT i.ctid AS row_id FROM {table} i
        WHERE i.slice = d.slice AND i.position = d.position OFFSET 0) i
))
"""

_OLDEST: Final = """
SELECT min(i.created_at)
FROM generate_series(0, 15) AS s (slice)
CROSS JOIN LATERAL (SELECT * FROM {table} i WHERE i.slice = s.slice ORDER BY i.position LIMIT 1) i
"""


@dataclass(frozen=True, slots=True)
class Invalidations:
    """The table `<owner>.invalidations`, written by whom `Wake` calls `owner`. A `Queue`.

    What has waited for `kept` is in no cache any more: every value lives one TTL from before it was read, and a
    transaction that has begun with the row ends within `transaction_timeout`, which is no more than the other.
    """

    owner: str
    kept: timedelta = field(init=False)
    oldest_sql: str = field(init=False)
    read: Statement = field(init=False)
    delete: Statement = field(init=False)

    def __post_init__(self) -> None:
        ttl_ms_max = max(kind.ttl_ms for kind in KINDS.values() if kind.prefix.startswith(f"{self.owner}:"))
        object.__setattr__(self, "kept", timedelta(milliseconds=2 * ttl_ms_max))
        object.__setattr__(self, "oldest_sql", _OLDEST.format(table=self.table))
        for member, sql in (("read", _READ), ("delete", _DELETE)):
            label = f"{self.owner}_invalidations_{member}"
            object.__setattr__(self, member, db.statement(label, sql.format(table=self.table), TYPES))

    @property
    def name(self) -> str:
        """In metrics, and in `relay.slices`."""
        return self.table

    @property
    def table(self) -> str:
        """With its schema."""
        return f"{self.owner}.invalidations"


INVALIDATIONS: Final = tuple(map(Invalidations, ("orders", "customers", "catalog")))


class Drain:
    """Tells `cache` what stands in `queue`, of the slices it holds the lease of. Without a cache, only deletes it."""

    def __init__(
        self,
        queue: Invalidations,
        database: Database,
        leases: Leases,
        alarm: Alarm,
        cache: Cache | None,
        *,
        rows_per_slice: int,
    ) -> None:
        self._queue, self._database, self._cache = queue, database, cache
        self._leases, self._alarm = leases, alarm
        self._lease = leases.add(queue.name, alarm)
        self._rows_per_slice = rows_per_slice

    async def run(self) -> None:
        """Until cancelled. While the cache is away, rows wait until they are too old to matter."""
        self._leases.want(self._lease, True)
        pause = PAUSE_SECONDS_MIN
        clock = asyncio.get_running_loop().time
        busy_until = 0.0
        while True:
            try:
                if await self._drain_once():
                    busy_until = clock() + BUSY_SECONDS
                pause = PAUSE_SECONDS_MIN
            except Exception as error:  # whatever it is: the outboxes go on
                part = part_of(error)
                relay_failures_total.labels(self._queue.name, part).inc()
                unforeseen = error if part == "unforeseen" else None
                log.warning(
                    "relay.interrupted", outbox=self._queue.name, part=part, error=str(error), exc_info=unforeseen
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)
            if clock() < busy_until:
                await asyncio.sleep(GATHER_SECONDS)
            else:
                await self._alarm.wait(None)  # whoever looks at all queues rings as long as rows wait

    async def _drain_once(self) -> bool:
        """The next rows of every slice are told and gone, unless the cache is away. Whether there were any."""
        slices = self._lease.slices()
        if not slices:
            return False
        self._lease.under_way |= set(slices)
        try:
            rows = await self._database.rows(self._queue.read, slices=slices, rows=self._rows_per_slice)
            kept_from = datetime.now(UTC) - self._queue.kept
            old = [row for row in rows if self._cache is None or row["created_at"] < kept_from]
            due = [row for row in rows if self._cache is not None and row["created_at"] >= kept_from]
            await self._delete(old, "dropped")
            told = await self._tell(due)
            await self._delete(due if told else [], "told")
        finally:
            self._lease.under_way -= set(slices)
        return bool(rows)

    async def _tell(self, rows: Sequence[Row]) -> bool:
        """Whether the cache has heard of all of them, tried for a while; each key once, with its newest version."""
        if self._cache is None:
            return True
        newest: dict[Key, int] = {}
        for row in rows:
            for key, version in keys_of(row["keys"]).items():
                newest[key] = max(version, newest.get(key, 0))
        clock = asyncio.get_running_loop().time
        until = clock() + BUSY_SECONDS
        while not (told := await self._cache.invalidate(newest, spare=True)) and clock() < until:
            await asyncio.sleep(GATHER_SECONDS)
        return told

    async def _delete(self, rows: Sequence[Row], outcome: str) -> None:
        if not rows:
            return
        await self._database.rows(
            self._queue.delete,
            slices=[row["slice"] for row in rows],
            positions=[row["position"] for row in rows],
        )
        invalidations_drained_total.labels(outcome).inc(len(rows))
