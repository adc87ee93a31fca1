"""Each part of a stack killed, frozen and slowed under load, and what is promised of it: DESIGN's table, row by row.

The rows are those of docs/faults.md.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest

from tests.faults.measured import metric
from tests.faults.money import assert_money_adds_up
from tests.faults.outcome import assert_nothing_lost, assert_shown
from tests.faults.parts import How, hurt
from tests.faults.promises import (
    Promise,
    events_wait_for_kafka,
    orders_are_paid_late,
    orders_expire_late,
    orders_stay_pending,
    orders_use_their_copy,
    placing_is_refused,
    reads_go_to_the_database,
    reports_are_refused,
    screens_catch_up,
)
from tests.faults.toxiproxy import server
from tests.faults.waiting import eventually
from tests.faults.whole import Whole, whole

LASTS_SECONDS = {How.KILLED: 2.0, How.FROZEN: 2.0, How.SLOWED: 1.0}  # at least


@pytest.fixture(scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    program = server()
    if program is None:
        pytest.skip("there is no Toxiproxy: make tools")
    started, over = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def run() -> None:  # in one task from its start to its end, which a fixture is not
        async with whole(tmp_path_factory.mktemp("parts") / "home", program) as found:
            started.set_result(found)
            await over.wait()

    running = asyncio.create_task(run())
    await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        running.result()
    yield started.result()
    over.set()
    await running


@dataclass(frozen=True)
class Row:
    """Of the table: a part, what is promised of it, and how its absence shows, where and when it does.

    `warning` is a process's endpoint and what stands in its /readyz; `breaker` a process and the name of one of its.
    """

    part: str
    promise: Promise
    warning: tuple[str, str] | None = None
    breaker: tuple[str, str] | None = None
    shown_when: frozenset[How] = frozenset({How.KILLED, How.FROZEN})
    taken: bool = True  # whether orders are taken meanwhile
    again_seconds: float = 30  # until all goes on


ROWS = (
    Row("orders-maintenance", orders_expire_late),
    Row("outbox-relay", screens_catch_up),
    Row("orders-projector", orders_are_paid_late),
    Row("payments-worker", orders_are_paid_late),
    Row("realtime-gateway", screens_catch_up),
    Row(
        "cache",
        reads_go_to_the_database,
        warning=("orders", "cache does not answer"),
        breaker=("orders-api", "cache"),
        shown_when=frozenset(How),
    ),
    Row(
        "kafka",
        events_wait_for_kafka,
        warning=("realtime", "kafka does not answer"),
        breaker=("outbox-relay", "kafka"),
        shown_when=frozenset({How.KILLED}),
    ),
    Row(
        "replica",
        reports_are_refused,
        warning=("orders", "replica does not answer"),
        breaker=("orders-api", "replica"),
    ),
    Row(
        "provider",
        orders_stay_pending,
        warning=("payments", "sandbox does not answer"),
        breaker=("payments-worker", "sandbox"),
    ),
    Row("catalogue, customers", orders_use_their_copy),
    Row(
        "primary",
        placing_is_refused,
        warning=("orders", "database does not answer"),
        breaker=("orders-api", "primary"),
        taken=False,
        again_seconds=10,
    ),
)
ENDPOINTS = ("orders", "payments", "realtime", "catalog", "customers")


@pytest.mark.parametrize("how", How)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.part)
async def test_while_a_part_is_away_its_promise_holds_and_then_all_goes_on(at: Whole, row: Row, how: How) -> None:
    await eventually(lambda: _well(at), "nothing is degraded", seconds=30, every=0.1)
    over_at = 0.0

    @asynccontextmanager
    async def fault() -> AsyncIterator[None]:
        nonlocal over_at
        async with hurt(at.stack, at.parts[row.part], how):
            lasting = asyncio.create_task(asyncio.sleep(LASTS_SECONDS[how]))
            refused = len(at.load.buyers.refusals)
            at.killed.update(at.parts[row.part].processes if how is How.KILLED else ())
            yield
            if row.taken:
                await at.load.more(5)
                assert at.load.buyers.refusals[refused:] == []
                assert (await at.get("/readyz")).status_code == 200
            if how in row.shown_when:
                await eventually(lambda: _shown(at, row), "it shows", seconds=30, every=0.1)
            await lasting
        over_at = time.monotonic()

    sign = await row.promise(at, how, fault())
    await eventually(sign.seen, sign.said, seconds=row.again_seconds, every=0.05)
    at.figures.append(f"{row.part} {how}: {sign.said} after {time.monotonic() - over_at:.2f} s")
    await eventually(lambda: _well(at), "nothing is degraded any more", seconds=30, every=0.1)


async def test_at_the_end_nothing_that_was_acknowledged_is_lost_and_nobody_died_but_who_was_killed(
    at: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    await at.load.end()
    newest, duplicates = await assert_nothing_lost(at.stack, at.load)
    at.figures += [
        f"{len(newest)} orders, {sum(newest.values())} events, {duplicates} of them twice on the topic",
        await assert_money_adds_up(at.stack, at.load.buyers.asked),
        await assert_shown(at.load, newest),
        f"attempts met {dict(at.load.buyers.seen)}",
    ]
    with capsys.disabled():
        print("", *at.figures, sep="\n")  # noqa: T201 # figures for whoever reads the run
    assert at.killed == {part: deaths for part, deaths in at.stack.restarts.items() if deaths}


async def _shown(at: Whole, row: Row) -> bool:
    """By a breaker that is not closed, and by readiness, where there are."""
    closed = row.breaker and not await _open(at, *row.breaker)
    return not closed and (row.warning is None or any(row.warning[1] in one for one in await _told(at, row.warning[0])))


async def _well(at: Whole) -> bool:
    """Nobody is degraded, and no breaker is open."""
    told = [warning for endpoint in ENDPOINTS for warning in await _told(at, endpoint)]
    return not told and not any([await _open(at, *row.breaker) for row in ROWS if row.breaker])


async def _open(at: Whole, process: str, name: str) -> bool:
    return await metric(at.stack, process, f'breaker_state{{breaker="{name}"}}') > 0


async def _told(at: Whole, endpoint: str) -> list[str]:
    """What readiness says."""
    try:
        answer = await at.get("/readyz", endpoint=endpoint)
    except httpx.TransportError as error:
        return [repr(error)]
    told: list[str] = answer.json()["warnings"] if answer.status_code == 200 else [answer.text]
    return told
