"""Long reads in short snapshots: vacuum waits for one of them at most, and a replica may cancel any."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import stamina
import structlog

from services.common.db import Database, WriteConnection
from services.common.db_errors import TransientError, translate

T = TypeVar("T")
log = structlog.get_logger()

_PATIENCE_SECONDS: Final = 86_400.0  # for one statement: the pool's own limit is meant for requests
ATTEMPTS: Final = 10  # over some twenty seconds: a replica that restarts is back by then

# An operator's session: no haste, plans for the month at hand, and memory for one month's sort but not for more.
UNHURRIED: Final[Mapping[str, str]] = {
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "on",
    "enable_partitionwise_join": "on",
    "work_mem": "32MB",
}


@asynccontextmanager
async def unhurried_database(
    url: str, application_name: str, *, connections: int = 1, settings: Mapping[str, str] = UNHURRIED
) -> AsyncIterator[Database]:
    """Connections without the limits of a request. With other `settings` sessions keep those that are not in them."""
    database = Database(
        url,
        application_name=application_name,
        size_max=connections,
        command_timeout_seconds=_PATIENCE_SECONDS,
        settings=settings,
    )
    await database.open()
    try:
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def unhurried(url: str, application_name: str) -> AsyncIterator[WriteConnection]:
    """One connection without the limits of a request."""
    async with unhurried_database(url, application_name) as database, database.session() as connection:
        yield connection


class Snapshots:
    """One short snapshot after another, which take at most `share` of the time; the rest of it is the database's own.

    What the caller does between two of them counts as rest, and a share of 1 or more leaves none. `repeated` is how
    many had to be taken again.
    """

    def __init__(self, database: Database, *, share: float = 1.0) -> None:
        self._database = database
        self._rest_factor = max(0.0, 1 / share - 1)
        self._rested_at = 0.0
        self.repeated = 0

    async def read(self, work: Callable[[WriteConnection], Awaitable[T]]) -> T:
        """What `work` gives in one snapshot: REPEATABLE READ, read only.

        It is run again in another one when its own was lost: cancelled by a replica that has to replay what removes
        its rows (PostgreSQL, section 26.4.2), or with its connection. So it must change nothing of the caller's.
        TransientError after ATTEMPTS.
        """
        async for attempt in stamina.retry_context(on=TransientError, attempts=ATTEMPTS, timeout=None):
            with attempt:
                return await self._read(work)
        raise AssertionError("stamina either returns or raises")

    async def _read(self, work: Callable[[WriteConnection], Awaitable[T]]) -> T:
        await asyncio.sleep(max(0.0, self._rested_at - time.monotonic()))
        started = time.monotonic()
        try:
            async with (
                self._database.session() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await work(connection)
        except Exception as error:
            lost = translate(error)
            if not isinstance(lost, TransientError):
                raise
            self.repeated += 1
            log.warning("snapshot.lost", reason=str(error))
            raise lost from error
        finally:
            ended = time.monotonic()
            self._rested_at = ended + (ended - started) * self._rest_factor
