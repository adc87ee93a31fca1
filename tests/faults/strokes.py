"""Single faults of what stands around a cache, each seen to have happened; all is well again afterwards."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import asyncpg
import psutil

from services.common import ids
from tests.faults.stage import READER, WRITER, Stage
from tests.faults.staleness import Thing
from tests.faults.waiting import eventually

FROZEN_SECONDS = 2.0
DEAD_SECONDS = 0.3
CUT_SECONDS = 1.0
SLOW_SECONDS, DELAY_SECONDS = 1.0, 0.2

Stroke = Callable[[Stage], Awaitable[None]]


async def valkey_killed(stage: Stage) -> None:
    """It dies, and is back empty."""
    before = _bypassed(stage, *stage.replicas)
    await stage.valkey.kill()
    await asyncio.sleep(DEAD_SECONDS)
    await stage.valkey.start()
    await _noticed(stage, before, *stage.replicas)


async def valkey_frozen(stage: Stage) -> None:
    """It stands still, and goes on with what it had."""
    before = _bypassed(stage, *stage.replicas)
    stage.valkey.freeze()
    await asyncio.sleep(FROZEN_SECONDS)
    stage.valkey.thaw()
    await _noticed(stage, before, *stage.replicas)


async def writer_cut_off(stage: Stage) -> None:
    """The process that writes does not reach the cache, all others do."""
    before = _bypassed(stage, WRITER)
    stage.wires[WRITER].sever()
    await asyncio.sleep(CUT_SECONDS)
    stage.wires[WRITER].severed = False
    await _noticed(stage, before, WRITER)


async def valkey_slow(stage: Stage) -> None:
    """Its answers come later than anybody waits for."""
    before = _bypassed(stage, *stage.replicas)
    for wire in stage.wires.values():
        wire.delay_seconds = DELAY_SECONDS
    await asyncio.sleep(SLOW_SECONDS)
    for wire in stage.wires.values():
        wire.delay_seconds = 0.0
    await _noticed(stage, before, *stage.replicas)


async def relay_killed(stage: Stage) -> None:
    """It dies, and is started again; it tells the cache again once the leases of its former life have run out."""
    owner = await asyncpg.connect(stage.owner_url)
    before = stage.stack.pid("outbox-relay")
    await stage.stack.kill("outbox-relay")
    await stage.stack.ready("outbox-relay")
    after = stage.stack.pid("outbox-relay")
    assert after not in {before, None}

    async def at_work() -> bool:
        held = "SELECT count(*) FROM relay.slices WHERE split_part(relay, ':', 2) = $1 AND outbox = $2"
        return bool(await owner.fetchval(held, str(after), "orders.invalidations") == ids.SLICES)

    await eventually(at_work, "the relay has all slices again")
    await owner.close()


async def writer_killed_after_its_commit(stage: Stage) -> None:
    """It has committed and told nobody when it dies: the cache is left to the relay. What counts is the commit."""
    owner = await asyncpg.connect(stage.owner_url)
    try:

        async def all_new() -> bool:
            return all(stage.seen.writes[thing][-1].version < at for thing, at in _asked(stage))

        await eventually(all_new, "what an earlier kill left unheard has been heard")
        stage.door.hold_at(b"COMMIT")

        async def committed() -> list[tuple[Thing, int]]:
            if not stage.door.held:  # what is committed may be answered any moment
                return []
            there = [(thing, at) for thing, at in _asked(stage) if await _version(owner, thing) == at]
            return [(thing, at) for thing, at in there if stage.seen.writes[thing][-1].version < at]

        unheard = await eventually(committed, "a write that is committed and not heard of", seconds=10, every=0.002)
        at = asyncio.get_running_loop().time()
        stage.replicas[WRITER].kill()
        stage.door.cut()
        for thing, version in unheard:
            stage.seen.acknowledged(thing, version, at)

        async def told() -> bool:
            newest = stage.seen.newest
            return all(newest[READER, thing].version >= version for thing, version in unheard)

        await eventually(told, "the other process gives what was committed", every=0.002)
    finally:
        await stage.replicas[WRITER].start_again()
        await owner.close()


async def backend_killed(stage: Stage) -> None:
    """PostgreSQL loses all of its connections, and recovers from its log."""
    owner = await asyncpg.connect(stage.owner_url)
    pid = await owner.fetchval(
        "SELECT pid FROM pg_stat_activity WHERE application_name = 'orders-api' ORDER BY query_start DESC LIMIT 1"
    )
    os.kill(pid, signal.SIGKILL)

    async def gone() -> bool:
        return not psutil.pid_exists(pid) and owner.is_closed()

    await eventually(gone, "the backend is gone, and all other connections")


STROKES: Final[Mapping[str, Stroke]] = {
    "Valkey killed": valkey_killed,
    "Valkey frozen for 2 s": valkey_frozen,
    "writer cut off from Valkey": writer_cut_off,
    "Valkey slow by 200 ms": valkey_slow,
    "relay killed": relay_killed,
    "writer killed after its commit": writer_killed_after_its_commit,
    "PostgreSQL backend killed": backend_killed,
}
# What may be met besides answers: a process that is dead answers nobody, a database that recovers answers 503.
ALLOWED: Final[Mapping[str, frozenset[str]]] = {
    "writer killed after its commit": frozenset(
        f"{WRITER}: {error}" for error in ("ConnectionError", "ConnectionRefusedError", "ConnectionResetError")
    ),
    "PostgreSQL backend killed": frozenset(f"{process}: 503 unavailable" for process in (WRITER, READER)),
}


def _asked(stage: Stage) -> list[tuple[Thing, int]]:
    return [asked for under_way in stage.under_way.values() for asked in under_way.items()]


def _bypassed(stage: Stage, *processes: str) -> dict[str, int]:
    return {process: stage.seen.outcomes[process]["bypass"] for process in processes}


async def _noticed(stage: Stage, before: dict[str, int], *processes: str) -> None:
    """Each of them has read past the cache meanwhile, and is back at it."""
    now = _bypassed(stage, *processes)
    assert all(now[process] > before[process] for process in processes), (before, now)
    hits = {process: stage.seen.outcomes[process]["hit"] for process in processes}

    async def back() -> bool:
        return all(stage.seen.outcomes[process]["hit"] > hits[process] for process in processes)

    await eventually(back, "every process has hits again")


async def _version(owner: "asyncpg.Connection[asyncpg.Record]", thing: Thing) -> int:
    """As the database has it."""
    table, column = ("orders", "order_id") if thing.kind == "order" else ("inventory", "product_id")
    found: int = await owner.fetchval(
        f"SELECT version FROM orders.{table} WHERE {column} = $1",  # noqa: S608 # of the two above
        ids.from_text(thing.path.rpartition("/")[2]),
    )
    return found
