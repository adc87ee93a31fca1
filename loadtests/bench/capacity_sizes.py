"""How large things are: tables, entries of the cache, processes, and connections of the database."""

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

from redis.asyncio import Redis

from loadtests.bench.capacity_meter import memory_bytes
from loadtests.bench.stage import Connection
from services.embedded.supervisor import Stack

# Partitions are their table's. Of the heap without what is free in it: COPY extends a table by more than it needs, and
# what updates leave behind is used again.
_TABLES: Final = """
SELECT coalesce(p.inhparent, c.oid)::regclass::text AS name,
       sum(pg_relation_size(c.oid) - (SELECT coalesce(sum(avail), 0) FROM pg_freespace(c.oid)))::bigint AS heap,
       sum(coalesce(pg_total_relation_size(nullif(c.reltoastrelid, 0)), 0))::bigint AS toast,
       sum(pg_indexes_size(c.oid))::bigint AS indexes
FROM pg_class c LEFT JOIN pg_inherits p ON p.inhrelid = c.oid
WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('orders', 'payments')
GROUP BY 1
"""
_BACKENDS: Final = """
SELECT pid, application_name FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_KEY: Final = re.compile(r"^(\w+:\w+):([vlf]):\{")


Sizes = dict[str, dict[str, int]]


async def tables(connection: Connection) -> Sizes:
    """Bytes by table with its partitions, after a VACUUM: what dead rows had is free."""
    await connection.execute("VACUUM")
    return {
        row["name"]: {"heap": row["heap"], "toast": row["toast"], "indexes": row["indexes"]}
        for row in await connection.fetch(_TABLES)
    }


def grown(before: Sizes, after: Sizes, orders: int) -> dict[str, dict[str, float]]:
    """Bytes for each of so many orders, of the tables that have grown."""
    each = {
        name: {kind: (size - before.get(name, {}).get(kind, 0)) / orders for kind, size in sizes.items()}
        for name, sizes in after.items()
    }
    return {name: sizes for name, sizes in each.items() if any(sizes.values())}


async def valkey(url: str) -> dict[str, dict[str, float]]:
    """By kind of key (v: the value, l: a lease, f: a fence): how many, and the bytes of one (MEMORY USAGE)."""
    sizes: defaultdict[str, list[int]] = defaultdict(list)
    async with Redis.from_url(url, decode_responses=True) as client:
        async for key in client.scan_iter(count=1000):
            if (found := _KEY.match(key)) and (size := await client.memory_usage(key, samples=0)):
                sizes[f"{found[1]}:{found[2]}"].append(size)
    return {kind: {"keys": len(each), "bytes": sum(each) / len(each)} for kind, each in sorted(sizes.items())}


def processes(stack: Stack, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Memory of each process, in bytes."""
    return {name: memory_bytes(stack.pid(name) or 0) for name in names}


async def backends(connection: Connection) -> dict[str, dict[str, Any]]:
    """Memory of the connections of each application, in bytes: the largest's, and how many there are."""
    found: dict[str, dict[str, Any]] = {}
    for pid, name in await connection.fetch(_BACKENDS):
        memory = memory_bytes(pid)
        former = found.get(name, {"connections": 0, "private": 0})
        largest = max((memory, former), key=lambda one: one["private"])
        found[name] = {**largest, "connections": former["connections"] + 1}
    return found
