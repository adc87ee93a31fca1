"""The inbox: what is new for a consumer, once, and in order, whoever else has the same messages."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import TypeAlias

import asyncpg
import pytest

from services.common import clock
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.inbox import REMEMBERED, Arrival, Inbox, Verdict
from services.common.stream import Received
from services.contracts import envelope
from tests.conftest import AsRole
from tests.faults.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
NEXT, STALE, GAP = Verdict
TOPIC = "t"


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As the projector, with a connection for each of two."""
    database = Database(as_role("orders_projector"), application_name="test-inbox", size_max=2)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def inbox() -> Inbox:
    return Inbox("orders", "test")


def arrivals(*found: tuple[str, int]) -> list[Arrival]:
    return [Arrival(key, version, "type") for key, version in found]


async def judged(inbox: Inbox, database: Database, *found: tuple[str, int], topic: str = TOPIC) -> Sequence[Verdict]:
    async with database.transaction() as connection:
        return await inbox.judge(connection, topic, arrivals(*found))


async def last_versions(owner: Owner) -> dict[str, int]:
    return {row["key"]: row["last_version"] for row in await owner.fetch("SELECT * FROM orders.inbox")}


async def test_the_next_version_applies_and_an_older_one_does_not(
    inbox: Inbox, database: Database, owner: Owner
) -> None:
    assert await judged(inbox, database, ("a", 1)) == [NEXT]
    assert await judged(inbox, database, ("a", 1)) == [STALE]
    assert await judged(inbox, database, ("a", 2), ("b", 1), ("a", 3)) == [NEXT, NEXT, NEXT]
    assert await judged(inbox, database, ("a", 2), ("b", 1), ("a", 3)) == [STALE, STALE, STALE]
    assert await judged(inbox, database, ("a", 1)) == [STALE]
    assert await last_versions(owner) == {"a": 3, "b": 1}


async def test_a_version_past_the_next_is_a_gap_also_when_it_is_the_first(
    inbox: Inbox, database: Database, owner: Owner
) -> None:
    assert await judged(inbox, database, ("a", 3), ("a", 4), ("a", 4), ("a", 2), ("a", 9)) == [
        *(GAP, NEXT, STALE, STALE, GAP)
    ]
    assert await judged(inbox, database, ("a", 8), ("a", 11)) == [STALE, GAP]
    assert await last_versions(owner) == {"a": 11}


async def test_a_batch_that_overlaps_what_is_known_begins_where_that_ends(inbox: Inbox, database: Database) -> None:
    await judged(inbox, database, ("a", 1), ("a", 2))
    assert await judged(inbox, database, ("a", 1), ("a", 2), ("a", 3)) == [STALE, STALE, NEXT]


async def test_consumers_and_topics_have_versions_of_their_own(inbox: Inbox, database: Database) -> None:
    await judged(inbox, database, ("a", 1))
    assert await judged(inbox, database, ("a", 1), topic="other") == [NEXT]
    assert await judged(Inbox("orders", "another"), database, ("a", 1)) == [NEXT]


async def test_a_transaction_that_is_rolled_back_has_judged_nothing(inbox: Inbox, database: Database) -> None:
    async def failing() -> None:
        async with database.transaction() as connection:
            await inbox.judge(connection, TOPIC, arrivals(("a", 1)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await failing()
    assert await judged(inbox, database, ("a", 1)) == [NEXT]


async def test_of_two_that_have_the_same_messages_the_second_waits_and_finds_them_stale(
    inbox: Inbox, database: Database, owner: Owner
) -> None:
    await judged(inbox, database, ("b", 1))  # a row that is changed, beside one that is made

    async def waits() -> bool:
        blocked = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        return bool(await owner.fetchval(f"{blocked} AND datname = current_database()"))  # a constant

    async with database.transaction() as first:
        assert await inbox.judge(first, TOPIC, arrivals(("a", 1), ("b", 3))) == [NEXT, GAP]
        # One that was frozen with older messages, and has the same and one more.
        second = asyncio.create_task(judged(inbox, database, ("b", 2), ("a", 1), ("a", 2), ("b", 3), ("b", 4)))
        await eventually(waits, "the second waits")
    assert await second == [STALE, STALE, NEXT, STALE, NEXT]
    assert await last_versions(owner) == {"a": 2, "b": 4}


def change(key: str, version: int, age: timedelta) -> Received:
    headers = envelope.headers(
        event_id="e",
        type_="type",
        source="s",
        subject=key,
        time=clock.to_text(clock.now() - age),
        version=version,
        traceparent=None,
    )
    return Received(0, version, key.encode(), b"", dict(headers), 0)


async def test_old_changes_of_a_key_whose_row_was_forgotten_are_not_applied_again(
    inbox: Inbox, database: Database, owner: Owner
) -> None:
    old, young = timedelta(days=40), timedelta(hours=1)

    async def applied(*messages: Received) -> list[bool]:
        async with database.transaction() as connection:
            return await inbox.judge_changes(connection, TOPIC, messages, known_since=clock.now() - REMEMBERED)

    assert await applied(change("new", 1, young), change("new", 2, young)) == [True, True]
    assert await applied(change("late", 1, young)) == [True]
    assert await applied(change("late", 2, old), change("late", 3, young)) == [True, True], "its row is there"
    await owner.execute("DELETE FROM orders.inbox")
    assert await applied(change("new", 1, old), change("new", 2, old), change("new", 3, young)) == [False, False, True]
    assert await last_versions(owner) == {"new": 3}
    assert await applied(change("new", 4, old)) == [True]
    with pytest.raises(PoisonError, match="ce_time"):
        await applied(Received(0, 9, b"x", b"", {**change("x", 1, old).headers, "ce_time": b"yesterday"}, 0))
