"""What a stack has used so far: CPU by process and by the database's applications, WAL, commits, statements, bytes."""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from loadtests.bench.machine import cpu_of
from loadtests.bench.stage import Connection
from services.embedded.supervisor import Stack

POSTGRES: Final = "postgres"

OWN: Final = "bench"  # application_name of who measures, whose CPU is nobody's cost

_BACKENDS: Final = "SELECT pid, application_name FROM pg_stat_activity WHERE backend_type = 'client backend'"
# Statements are what the API's role has had executed, BEGIN and COMMIT too: each is a round trip.
_COUNTERS: Final = """
SELECT (SELECT sum(fsyncs) FROM pg_stat_io WHERE object = 'wal')::float8 AS wal_syncs,
       (SELECT sum(calls) FROM pg_stat_statements s JOIN pg_roles r ON r.oid = s.userid
        WHERE r.rolname = 'orders_api')::float8 AS api_statements
"""
# Of those that wrote something: what only reads writes no commit record.
_WAL: Final = """
SELECT coalesce(sum(record_size), 0)::float8 AS wal_bytes, coalesce(sum(fpi_size), 0)::float8 AS full_page_bytes,
       coalesce(sum(count) FILTER (WHERE "resource_manager/record_type" LIKE 'Transaction/COMMIT%'), 0)::float8
           AS commits
FROM pg_get_wal_stats($1::text::pg_lsn, $2::text::pg_lsn, TRUE)
"""
Used = dict[str, float]


class Meter:
    """Counters of one stack. They only grow, so what happened between two readings is their difference."""

    def __init__(self, stack: Stack, connection: Connection, processes: Sequence[str]) -> None:
        self._connection, self._home = connection, stack.settings.home
        self._cpu = {name: cpu_of(stack.pid(name) or 0) for name in (*processes, POSTGRES, "kafka", "valkey")}
        self._backends: dict[int, tuple[str, float]] = {}  # also ended ones, as they were seen last

    async def read(self) -> Used:
        """CPU in seconds (`cpu …`), bytes of logs (`log …`) and topics (`topic …`), counters, time."""
        await self._connection.execute("SELECT pg_stat_force_next_flush()")
        (counters,) = await self._connection.fetch(_COUNTERS)
        applications = await self._by_application()
        cpu = {name: used() for name, used in self._cpu.items()}
        cpu[POSTGRES] -= applications.get(OWN, 0.0)
        return {
            "seconds": time.monotonic(),
            **{name: float(value or 0) for name, value in dict(counters).items()},
            **{f"cpu {name}": used for name, used in cpu.items()},
            **{f"cpu {POSTGRES} of {name}": used for name, used in applications.items() if name not in {"", OWN}},
            **{f"log {file.stem}": float(file.stat().st_size) for file in (self._home / "log").glob("*.log")},
            **{f"topic {name}": float(size) for name, size in topic_bytes(self._home).items()},
        }

    async def position(self) -> str:
        """Where the WAL is written next."""
        return str(await self._connection.fetchval("SELECT pg_current_wal_insert_lsn()::text"))

    async def wal(self, start: str) -> Used:
        """Since `start`: bytes of records, of full-page images, and commits. All of it has to be there still."""
        await self._connection.execute("SELECT pg_logical_emit_message(TRUE, 'bench', '')")  # one record at the least
        end = await self._connection.fetchval("SELECT pg_current_wal_flush_lsn()::text")
        (row,) = await self._connection.fetch(_WAL, start, end, timeout=600)
        return dict(row)

    async def _by_application(self) -> Mapping[str, float]:
        for pid, name in await self._connection.fetch(_BACKENDS):
            try:
                times = psutil.Process(pid).cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._backends[pid] = (name, times.user + times.system)
        used: defaultdict[str, float] = defaultdict(float)
        for name, seconds in self._backends.values():
            used[name] += seconds
        return used


def topic_bytes(home: Path) -> dict[str, int]:
    """Of each topic's segments on the embedded broker's disk, without their indexes, which are allocated ahead."""
    sizes: defaultdict[str, int] = defaultdict(int)
    for segment in (home / "kafka" / "data").glob("*/*.log"):
        sizes[segment.parent.name.rpartition("-")[0]] += segment.stat().st_size
    return sizes


def memory_bytes(pid: int) -> dict[str, int]:
    """Of one process, from /proc/<pid>/smaps_rollup (proc(5)): resident, its share of that, and what is its own."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) * 1024
    return {
        "rss": found["Rss"],
        "pss": found["Pss"],
        "private": found["Private_Clean"] + found["Private_Dirty"],
    }
