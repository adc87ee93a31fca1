"""What an id costs by its type: a uuid, and the same 128 bits as char(26), text and bytea."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from loadtests.bench.machine import own_cpu
from loadtests.bench.measure import Comparison, Phase, Side, Work
from loadtests.bench.stage import Connection, Stage
from services.common import clock, ids

_AS: Final[dict[str, Callable[[UUID], object]]] = {
    "uuid": lambda value: value,
    "char(26)": ids.to_text,
    "text": ids.to_text,
    "bytea": lambda value: value.bytes,
}
_ROWS, _QUICK_ROWS = 20_000, 100  # of an insert's turn: a count, so that all tables stay as large
_BATCH: Final = 500  # rows of a transaction, and reads of a round trip: what is measured is not the way there
_BUYERS: Final = 1_000


@dataclass
class _Table:
    """Rows by an id of this type, of buyers by one of the same: the shape of a row of orders."""

    name: str
    kind: str
    connection: Connection
    rows: int
    known: list[UUID] = field(default_factory=list)

    async def insert(self, _seconds: float) -> Work:
        """`rows` new ones, in the order of their ids, as orders are."""
        convert, taken, inserted = _AS[self.kind], 0.0, 0
        while inserted < self.rows:
            fresh = sorted(ids.new_id(clock.now()) for _ in range(_BATCH))
            buyers = (UUID(int=random.randrange(_BUYERS)) for _ in fresh)
            rows = [(convert(one), convert(buyer), 1999) for one, buyer in zip(fresh, buyers, strict=True)]
            started = time.perf_counter()
            await self.connection.executemany(f"INSERT INTO {self.name} VALUES ($1, $2, $3)", rows)  # ours
            taken += time.perf_counter() - started
            self.known += fresh
            inserted += _BATCH
        return Work(inserted, taken)

    async def read(self, seconds: float) -> Work:
        """Rows by ids drawn from all there are. Every one is found."""
        convert, taken, found = _AS[self.kind], 0.0, 0
        while not found or taken < seconds:
            drawn = [(convert(random.choice(self.known)),) for _ in range(_BATCH)]
            started = time.perf_counter()
            rows = await self.connection.fetchmany(f"SELECT amount FROM {self.name} WHERE id = $1", drawn)  # ours
            taken += time.perf_counter() - started
            found += len(rows)
        return Work(found, taken)

    async def size(self) -> dict[str, float]:
        """Bytes of a row, in the table and in its two indexes."""
        row = await self.connection.fetchrow(
            "SELECT pg_table_size($1::regclass)::float8 / $2 AS of_table, pg_indexes_size($1::regclass)::float8 / $2"
            " AS of_indexes",
            *(self.name, len(self.known)),
        )
        return {name: round(value, 1) for name, value in dict(row or {}).items()}


async def comparisons(stage: Stage) -> list[Comparison]:
    """Inserts, then reads of what they have left. Bytes of a row are facts of the reads."""
    connection = await stage.connected()
    tables = []
    for number, kind in enumerate(_AS):
        name = f"bench_key_{number}"
        await connection.execute(
            f"CREATE TABLE {name} (id {kind} PRIMARY KEY, user_id {kind} NOT NULL, amount bigint NOT NULL);"
            f" CREATE INDEX ON {name} (user_id, id)"
        )
        tables.append(_Table(name, kind, connection, _QUICK_ROWS if stage.quick else _ROWS))

    async def sizes(_: Sequence[Phase]) -> dict[str, Any]:
        return {"bytes of a row": {table.kind: await table.size() for table in tables}}

    return [
        Comparison("key inserts", "rows", [Side(table.kind, table.insert, own_cpu) for table in tables]),
        Comparison("key reads", "rows", [Side(table.kind, table.read, own_cpu) for table in tables], sizes),
    ]
