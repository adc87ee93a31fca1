"""Knowing what is replaced in a cache as it happens, and for how long one has surely known all of it.

News may be lost with a connection, and a connection may die without a word. So a process writes a heartbeat to each
server of the cache and hears it come back, as news like any: what was replaced before it was written is known then.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog
from prometheus_client import Counter
from redis.exceptions import RedisError

from services.common.cache_events import Beat, Channel, Connect, MovedError

BOUND_SECONDS: Final = 0.25  # for so long after a heartbeat was written, what is not known to be replaced is good
BEAT_SECONDS: Final = 0.1  # between two heartbeats: one may come late by as much again, and nothing is noticed
HEAR_SECONDS: Final = BOUND_SECONDS  # until a heartbeat has come back; then the connection is taken for dead
OPEN_SECONDS: Final = 1.0  # to reach all servers
PAUSE_SECONDS_MIN: Final = 0.1  # before the next try, twice as long after each that failed
PAUSE_SECONDS_MAX: Final = 3.0
AT_ONCE: Final = 100  # news that wait already, before others have their turn: a large order replaces 2,000 answers

log = structlog.get_logger()
cache_l1_flushes_total = Counter(
    "cache_l1_flushes_total", "Times all of L1 was forgotten: its news might have been lost", ["reason"]
)


@dataclass
class _Line:
    """To one server. `known_until`: what was replaced there before then is known (monotonic, seconds)."""

    channel: Channel
    known_until: float = float("-inf")
    sent_at: float = 0.0
    server_ms: float = 0.0  # of the server's clock at 0 of ours, at most so much too late
    seen: asyncio.Event = field(default_factory=asyncio.Event)


class Watch:
    """Calls `replaced` with the name of each fence that is set, and `lost` whenever one may have been missed.

    While `fresh`, whatever was replaced more than BOUND_SECONDS ago has been told. Nothing here fails: while a server
    does not answer, or does not tell of its keys, it is not fresh.
    """

    def __init__(
        self,
        connect: Connect,
        replaced: Callable[[str], None],
        lost: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect, self._replaced, self._lost, self._monotonic = connect, replaced, lost, monotonic
        self._lines: list[_Line] = []
        self._known_until = float("-inf")
        self._server_ms = 0.0
        self._said: str | None = None
        self._pause = PAUSE_SECONDS_MIN
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    @property
    def started(self) -> bool:
        """It was begun."""
        return self._task is not None

    def start(self) -> None:
        """It begins."""
        self._task = asyncio.create_task(self._run(), name="cache-watch")

    async def close(self) -> None:
        """Nothing runs and no connection is open."""
        self._closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def fresh(self) -> bool:
        """All that was replaced more than BOUND_SECONDS ago is known."""
        return self.age_seconds <= BOUND_SECONDS

    @property
    def age_seconds(self) -> float:
        """How long ago the heartbeat was written that was heard last, of the server where that is longest."""
        return self._monotonic() - self._known_until

    def server_ms(self) -> float:
        """The servers' clock, that which is furthest ahead; at most as much too late as a heartbeat takes."""
        return self._server_ms + self._monotonic() * 1000

    async def _run(self) -> None:
        while True:
            try:
                await self._follow()
            except Exception as error:  # noqa: BLE001  whatever it is, it is told, and tried again
                self._failed(error.exceptions[0] if isinstance(error, ExceptionGroup) else error)
            if self._closing:  # told to end while something failed, a TaskGroup raises the failure alone
                return
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, PAUSE_SECONDS_MAX)

    async def _follow(self) -> None:
        """Until a server cannot be heard, which is raised; then nothing is known any more."""
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                self._lines = [_Line(channel) for channel in await self._connect()]
        except TimeoutError as error:
            raise ConnectionError(f"not all servers were reached in {OPEN_SECONDS:g} s") from error
        try:
            async with asyncio.TaskGroup() as tasks:
                for line in self._lines:
                    tasks.create_task(self._hear(line))
                    tasks.create_task(self._beat(line))
        finally:
            self._known_until = float("-inf")
            self._lost()
            for line in self._lines:
                await line.channel.close()

    async def _hear(self, line: _Line) -> None:
        at_once = 0
        while True:
            match await line.channel.hear():
                case Beat(server_ms):
                    line.known_until = line.sent_at
                    line.server_ms = server_ms - line.sent_at * 1000
                    line.seen.set()
                    self._heard_a_beat()
                case name:
                    self._replaced(name)
            at_once += 1
            if at_once % AT_ONCE == 0:  # what has come already is given without a pause
                await asyncio.sleep(0)

    async def _beat(self, line: _Line) -> None:
        """One heartbeat is on its way at a time, so that which is heard is the one that was sent last."""
        while True:
            line.seen.clear()
            line.sent_at = self._monotonic()
            async with asyncio.timeout(HEAR_SECONDS):
                await line.channel.beat()
                await line.seen.wait()
            await asyncio.sleep(BEAT_SECONDS - (self._monotonic() - line.sent_at))

    def _heard_a_beat(self) -> None:
        self._known_until = min(line.known_until for line in self._lines)
        self._server_ms = max(line.server_ms for line in self._lines)
        if self.fresh and self._said != "":
            log.info("cache.l1_on", servers=len(self._lines))
            self._said, self._pause = "", PAUSE_SECONDS_MIN

    def _failed(self, error: Exception) -> None:
        """It is told once, however often it is tried again, and counted if anything was known."""
        match error:
            case MovedError():
                reason = "moved"
            case TimeoutError():
                reason = "unheard"
            case RedisError() | OSError():
                reason = "disconnected"
            case _:
                reason = "unforeseen"
        if self._said == "":
            cache_l1_flushes_total.labels(reason).inc()
        if self._said != reason:
            self._said = reason
            log.warning(
                "cache.l1_off",
                reason=reason,
                error=repr(error),
                hint="no heartbeat came back: is there K$ in notify-keyspace-events?" if reason == "unheard" else None,
                exc_info=error if reason == "unforeseen" else None,
            )
