"""Whether a database answers at all, which is not told by whoever waits for a lock, a long statement or a full pool.

While something that was asked of it is late, or after a connection was lost, the server is asked for nothing but an
answer, on a connection of the watch's own and through a breaker. One that gives none is left alone: what waits for it
ends now, nothing new is begun, and the watch alone looks, once a window, whether it is back. The connection is made
before it is needed, as making one takes several round trips, and a question one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog
from pybreaker import STATE_CLOSED

from services.common.breaker import Breaker

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

# A frozen server is left alone after LATE + FAILURES * ANSWER = 0.8 s, a dead one after LATE * FAILURES = 0.6 s, which
# a restart after a crash usually takes less than.
LATE_SECONDS: Final = 0.2  # ten times what a statement may take
ANSWER_SECONDS: Final = 0.2
FAILURES: Final = 3  # in a row
# Before it is asked anew, as on a connection that nothing comes through any more. Who asked anew each time would take a
# server for dead that is slow. It is also the time for making a connection, which the pool gives less.
QUESTION_SECONDS: Final = 2.0
RESET_SECONDS: Final = 1.0  # and so late at most does it all go on
# A question given up later than that tells only that this process had no time to hear the answer: it asks again, until
# the breaker's own deadline.
_GIVEN_UP_SECONDS: Final = 1.5 * ANSWER_SECONDS
_DEADLINE_SECONDS: Final = 5.0

_DOWN: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,  # starting up, or shutting down
)

log = structlog.get_logger()


class Watch:
    """Of the database `name`, which is also the label of its metrics: no other of the process has it.

    `since` is what waits for the database now, in the order of its beginning, each with when that was (monotonic).
    `end_all` ends it, with an error for whoever waits.
    """

    def __init__(
        self,
        name: str,
        connect: "Callable[[], Awaitable[Connection]]",
        since: Mapping[object, float],
        end_all: Callable[[], Awaitable[None]],
    ) -> None:
        self.breaker = Breaker(name, deadline_seconds=_DEADLINE_SECONDS, failures=FAILURES, reset_seconds=RESET_SECONDS)
        self._connect = connect
        self._since = since
        self._end_all = end_all
        self._suspected_at: float | None = None
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._question: asyncio.Task[None] | None = None
        self._asked_at = 0.0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """It watches from now on, and connects. The server need not be there."""
        name = self.breaker.name
        self._tasks = [
            asyncio.create_task(self._stay_connected(), name=f"connection of the watch {name}"),
            asyncio.create_task(self._run(), name=f"watch {name}"),
        ]

    async def close(self) -> None:
        """It watches no more, and has no connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._drop()

    def admit(self) -> None:
        """Something may be asked of the database. BreakerOpenError, counted, while it is left alone."""
        if self.breaker.state != STATE_CLOSED:
            raise self.breaker.rejected()

    def suspect(self) -> None:
        """A connection was lost, or refused: the server will be asked, and left alone if it does not answer."""
        if self._suspected_at is None:
            self._suspected_at = monotonic()

    async def _stay_connected(self) -> None:
        """There is a connection before there is a question. While the server is suspected the questions make it."""
        while True:
            if self._suspected_at is None:
                try:
                    await self._connected()
                except Exception as error:  # noqa: BLE001 # whatever it is, it is tried again
                    log.warning("db.watch_not_connected", database=self.breaker.name, error=repr(error))
                    if not _has_answered(error):
                        self.suspect()
            await asyncio.sleep(RESET_SECONDS)

    async def _connected(self) -> "Connection":
        """The connection there is, or that somebody is just making, or a new one."""
        async with self._connecting:
            if self._connection is None or self._connection.is_closed():
                async with asyncio.timeout(QUESTION_SECONDS):
                    self._connection = await self._connect()
            return self._connection

    async def _run(self) -> None:
        while True:
            await self._until_late()
            asked_at = monotonic()
            await self._ask(asked_at)
            await asyncio.sleep(max(asked_at + LATE_SECONDS - monotonic(), self.breaker.retry_after))

    async def _until_late(self) -> None:
        """Something has waited for LATE_SECONDS. What begins while nothing waits is not missed: it is not late yet."""
        while True:
            now = monotonic()
            oldest = next(iter(self._since.values()), now)
            waited = now - min(oldest, now if self._suspected_at is None else self._suspected_at)
            if waited >= LATE_SECONDS:
                return
            await asyncio.sleep(LATE_SECONDS - waited)

    async def _ask(self, at: float) -> None:
        try:
            await self.breaker.call(self._answer)
        except Exception as error:  # noqa: BLE001 # whatever it is, the watch goes on; the breaker counts it
            log.warning("db.no_answer", database=self.breaker.name, error=repr(error))
            self._suspected_at = at  # so that it is asked again, even if nothing waits any more
            if self.breaker.state != STATE_CLOSED:
                await self._end_all()
        else:
            self._suspected_at = None

    async def _answer(self) -> None:
        """The server has said something in time, now or to what it was asked before."""
        while True:
            began_at = monotonic()
            if self._question is not None and began_at - self._asked_at > QUESTION_SECONDS:
                await self._drop()
            if self._question is None:
                self._question, self._asked_at = asyncio.create_task(self._one_question()), began_at
            await asyncio.wait([self._question], timeout=ANSWER_SECONDS)
            if self._question.done():
                question, self._question = self._question, None
                return question.result()
            if monotonic() - began_at < _GIVEN_UP_SECONDS:
                raise TimeoutError(f"no answer for {monotonic() - self._asked_at:.1f} s")

    async def _one_question(self) -> None:
        """It has answered, be it that it has too many connections."""
        try:
            connection = await self._connected()
            await connection.execute("SELECT 1")
        except Exception as error:
            self._disconnect()
            if not _has_answered(error):
                raise

    async def _drop(self) -> None:
        """Nothing is asked any more, and there is no connection."""
        question, self._question = self._question, None
        self._disconnect()
        if question is not None:
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _has_answered(error: Exception) -> bool:
    """Whether it is the server that has refused something, and not one that goes or comes."""
    return isinstance(error, asyncpg.PostgresError) and not isinstance(error, _DOWN)
