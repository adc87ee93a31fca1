"""No interleaving has L1 give an answer that is older than its bound; and the search would find one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.common import cache_watch
from services.common.cache import Cache
from services.common.cache_events import ValkeyChannel
from services.common.cache_l1 import L1Cache
from services.common.cache_memory import Memory
from services.common.cache_valkey import ValkeyStore
from services.common.cache_watch import Watch
from tests.faults.exploration import Explored, explored
from tests.faults.interleavings import NEVER_SECONDS
from tests.faults.l1_interleavings import EARS, FAULTS, KIND, OWN, READER, TOO_OLD, L1World
from tests.faults.valkey import Server, serving


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """That nobody else uses."""
    async with serving(tmp_path) as started:
        yield started


@pytest.fixture(autouse=True)
def no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """But the scheduler's. The bound itself stays: it is compared with the scheduler's clock."""
    for name in ("BEAT_SECONDS", "PAUSE_SECONDS_MIN", "PAUSE_SECONDS_MAX"):
        monkeypatch.setattr(cache_watch, name, 0.0)
    for name in ("OPEN_SECONDS", "HEAR_SECONDS"):
        monkeypatch.setattr(cache_watch, name, NEVER_SECONDS)


async def search(server: Server, *, faults: tuple[str, ...] = (), own: bool = False) -> Explored:
    """All there is."""
    store, redis, wire = ValkeyStore(server.url), Redis.from_url(server.url), ValkeyChannel(server.url, [KIND])
    try:
        await wire.open()
        await wire.beat()
        await wire.hear()  # so the server knows that it listens
        return await explored(lambda: L1World(store, redis, wire, faults, own))
    finally:
        await wire.close()
        await redis.aclose()
        await store.close()


async def test_whatever_one_fault_comes_where_l1_gives_nothing_that_is_older_than_its_bound(server: Server) -> None:
    found = await search(server, faults=FAULTS)
    assert found.violation is None
    # Every one of them was reached: fewer would mean that the search has lost moves, not that the protocol is better.
    assert found.states >= 950


async def test_what_its_own_process_has_replaced_l1_does_not_give_after_the_acknowledgement(server: Server) -> None:
    found = await search(server, own=True)
    assert found.violation is None
    assert found.states >= 400


async def test_without_the_generation_an_answer_that_comes_after_the_news_of_its_replacement_stays(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "drop", Memory._forget)
    violation = (await search(server)).violation
    assert violation
    assert violation.what == TOO_OLD
    assert violation.path.index(("pass", EARS)) < max(
        number for number, move in enumerate(violation.path) if move == ("pass", READER)
    )


async def test_without_the_flush_what_was_missed_while_nobody_listened_stays(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L1Cache, "_flush", lambda _: None)
    violation = (await search(server, faults=("cut",))).violation
    assert violation
    assert violation.what == TOO_OLD
    assert ("cut", "server") in violation.path


async def test_what_was_asked_for_before_the_connection_ended_must_not_be_kept_after_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Memory, "flush", lambda memory: memory._held.clear())
    violation = (await search(server, faults=("cut",))).violation
    assert violation
    assert violation.what == TOO_OLD


async def test_without_the_heartbeat_nobody_notices_that_a_connection_is_dead(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watch, "fresh", property(lambda watch: watch._known_until > float("-inf")))
    violation = (await search(server, faults=("silence",))).violation
    assert violation
    assert violation.what == TOO_OLD


async def test_the_heartbeat_tells_of_the_time_when_it_was_written_not_of_when_it_was_heard(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard_a_beat = Watch._heard_a_beat

    def as_of_now(watch: Watch) -> None:
        for line in watch._lines:
            line.known_until = watch._monotonic()
        heard_a_beat(watch)

    monkeypatch.setattr(Watch, "_heard_a_beat", as_of_now)
    violation = (await search(server)).violation
    assert violation
    assert violation.what == TOO_OLD


async def test_without_dropping_it_at_once_a_process_reads_what_it_has_replaced_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L1Cache, "invalidate", Cache.invalidate)
    violation = (await search(server, own=True)).violation
    assert violation
    assert violation.what == OWN
