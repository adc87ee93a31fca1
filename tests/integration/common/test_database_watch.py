"""What must never open a database's breaker: whatever is slow or given up while the server itself answers."""

import asyncio
import time
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.common import db
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.db_watch import ANSWER_SECONDS, FAILURES, LATE_SECONDS
from tests.conftest import AsRole
from tests.consuming import metric
from tests.faults.waiting import eventually
from tests.plans.proxy import CountingProxy, counting_proxy

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

PATIENCE_SECONDS = LATE_SECONDS + FAILURES * ANSWER_SECONDS  # then a server that does not answer is left alone

_names = (f"watched-{n}" for n in count())
BEAT = db.statement("test_beat", "UPDATE orders.heartbeat SET at = at RETURNING 1 AS one", {})
SLEEP = db.statement("test_sleep", "SELECT pg_sleep(4)", {})
ONE = db.statement("test_one", "SELECT 1 AS one", {})


class Watched(Database):
    """With a name of its own, so that its metrics are."""

    def __init__(self, url: str, *, connections_min: int = 1) -> None:
        self.name = next(_names)
        super().__init__(url, application_name=self.name, size_max=4, size_min=connections_min, name=self.name)

    def assert_never_opened(self) -> None:
        """Once open it is closed by a probe alone."""
        assert self.breaker.state == "closed"
        assert metric("breaker_probes_total", breaker=self.name, outcome="success") == 0


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Watched]:
    opened = Watched(database_url)
    await opened.open()
    yield opened
    await opened.close()


async def asked(owner: Owner, database: Watched) -> None:
    """The watch found something late, and has asked the server. (In a transaction `owner` would see no news.)"""

    async def has_asked() -> bool:
        found = "SELECT bool_or(query_start IS NOT NULL) FROM pg_stat_activity WHERE application_name = $1"
        return bool(await owner.fetchval(found, f"{database.name} watch"))

    await eventually(has_asked, "the watch has asked")


async def connected(owner: Owner, database: Watched, *, since: int = 0) -> int:
    """The process of the connection that the watch has and has asked nothing on; another than `since`."""
    found = "SELECT pid FROM pg_stat_activity WHERE application_name = $1 AND query_start IS NULL AND pid <> $2"

    async def pid() -> int | None:
        made: int | None = await owner.fetchval(found, f"{database.name} watch", since)
        return made

    made = await eventually(pid, "the watch has a connection")
    assert made is not None
    return made


@pytest.mark.parametrize(
    "lock",
    ["LOCK TABLE orders.heartbeat IN ACCESS EXCLUSIVE MODE", "SELECT FROM orders.heartbeat FOR UPDATE"],
    ids=["table", "row"],
)
async def test_a_lock_that_all_wait_for_does_not_open_it(
    owner: Owner, database_url: str, database: Watched, lock: str
) -> None:
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute(lock)
        waiting = [asyncio.create_task(database.rows(BEAT)) for _ in range(12)]  # more than there are connections
        await asked(owner, database)
        await asyncio.wait(waiting, timeout=2 * PATIENCE_SECONDS)
        database.assert_never_opened()
    await holder.close()
    for outcome in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(outcome, list | LockTimeoutError | TransientError), outcome
    database.assert_never_opened()
    assert len(await database.rows(BEAT)) == 1


async def test_two_hundred_cancelled_statements_do_not_open_it(owner: Owner, database: Watched) -> None:
    given_up = [asyncio.create_task(database.rows(SLEEP)) for _ in range(200)]
    await asked(owner, database)
    for task in given_up:
        task.cancel()
    outcomes = await asyncio.gather(*given_up, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {asyncio.CancelledError, TransientError}
    assert len(await database.rows(ONE)) == 1
    database.assert_never_opened()


async def test_a_process_without_time_does_not_take_the_server_for_dead(owner: Owner, database: Watched) -> None:
    late = asyncio.create_task(database.rows(SLEEP))
    await asked(owner, database)
    until = time.monotonic() + 3 * PATIENCE_SECONDS
    while time.monotonic() < until:
        time.sleep(2 * ANSWER_SECONDS)  # noqa: ASYNC251 # nothing of this process runs
        for _ in range(3):
            await asyncio.sleep(0)
    database.assert_never_opened()
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)


async def test_a_server_that_has_too_many_connections_answers(owner: Owner, as_role: AsRole) -> None:
    name = await owner.fetchval("SELECT current_database()")
    database = Watched(as_role("orders_api"))  # the limit does not hold for the owner
    await database.open()
    await owner.execute(f"ALTER DATABASE {name} CONNECTION LIMIT 0")
    ended = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = $1"
    await owner.execute(ended, database.name)
    until = time.monotonic() + 2 * PATIENCE_SECONDS
    while time.monotonic() < until:
        with pytest.raises(TransientError):
            await database.rows(ONE)
        await asyncio.sleep(0.05)
    database.assert_never_opened()
    await owner.execute(f"ALTER DATABASE {name} CONNECTION LIMIT -1")
    assert len(await database.rows(ONE)) == 1
    await database.close()


async def test_the_first_question_goes_over_a_connection_that_is_there_from_the_start(
    owner: Owner, database_url: str, database: Watched
) -> None:
    made = await connected(owner, database)
    holder = await asyncpg.connect(database_url)
    async with holder.transaction():
        await holder.execute("SELECT FROM orders.heartbeat FOR UPDATE")
        late = asyncio.create_task(database.rows(BEAT))
        await asked(owner, database)
        on = "SELECT array_agg(pid) FROM pg_stat_activity WHERE application_name = $1"
        assert await owner.fetchval(on, f"{database.name} watch") == [made]
    await holder.close()
    await late


async def test_a_connection_of_the_watch_that_is_lost_is_made_anew_before_it_is_needed(
    owner: Owner, database: Watched
) -> None:
    lost = await connected(owner, database)
    assert await owner.fetchval("SELECT pg_terminate_backend($1, 5000)", lost)
    await connected(owner, database, since=lost)
    assert metric("breaker_failures_total", breaker=database.name) == 0


async def test_a_server_that_comes_after_the_process_is_found(database_url: str, tmp_path: Path) -> None:
    database = Watched(CountingProxy(database_url, tmp_path).url, connections_min=0)
    await database.open()  # nobody listens there yet

    async def left_alone() -> bool:
        return database.breaker.state != "closed"

    await eventually(left_alone, "nothing that is asked of it in vain has to tell")
    async with counting_proxy(database_url, tmp_path):

        async def found() -> bool:
            return database.breaker.state == "closed"

        await eventually(found, "it is there")
        assert len(await database.rows(ONE)) == 1
        await database.close()
