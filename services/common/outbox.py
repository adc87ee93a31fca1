"""How a writer wakes the relay: a hint on Valkey after the commit. The relay polls anyway; a lost hint costs time."""

import asyncio
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

TIMEOUT_SECONDS: Final = 0.1
PAUSE_AFTER_FAILURE_SECONDS: Final = 0.5  # while Valkey is away the relay's poll carries on alone

PING_SECONDS: Final = 5.0

log = structlog.get_logger()
outbox_wakes_total = Counter("outbox_wakes_total", "PUBLISH to the relay, by result", ["result"])


def channel(outbox: str) -> str:
    """Where writers to `outbox` call."""
    return f"outbox:{outbox}:wake"


async def _ended(task: asyncio.Task[None]) -> None:
    """`task` runs no more. redis-py swallows a cancellation that meets its own time-out, so one may not be enough."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=TIMEOUT_SECONDS)


class Wake:
    """Tells the relays of `outbox` that rows wait. Calls never wait nor fail; many in one round trip become one."""

    def __init__(self, valkey_url: str, outbox: str) -> None:
        self._channel = channel(outbox)
        self._redis = Redis.from_url(
            valkey_url,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.healthy = True

    def start(self) -> None:
        """Hints are sent from now on."""
        self._task = asyncio.create_task(self._run(), name="outbox-wake")

    def __call__(self) -> None:
        """There is a row in an outbox."""
        self._wanted.set()

    async def close(self) -> None:
        """Nothing runs and no connection is open afterwards."""
        if self._task is not None:
            await _ended(self._task)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                await self._redis.publish(self._channel, b"1")
            except (RedisError, OSError) as error:
                outbox_wakes_total.labels("failed").inc()
                if self.healthy:
                    log.warning("outbox.wake_failed", error=repr(error))
                self.healthy = False
                await asyncio.sleep(PAUSE_AFTER_FAILURE_SECONDS)
            else:
                outbox_wakes_total.labels("sent").inc()
                self.healthy = True


class Ring(StrEnum):
    """Why whoever waits for an alarm goes on."""

    CALLED = "called"  # by a writer: the next one calls, too
    FOUND = "found"  # by whoever looks for rows of which nobody may have called


class Alarm:
    """The side of one relay of `outbox`: rings when a writer has called, and is silent while Valkey is away."""

    def __init__(self, valkey_url: str, outbox: str) -> None:
        self._channel = channel(outbox)
        self._redis = Redis.from_url(valkey_url, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0))
        self._rung = asyncio.Event()
        self._called = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Calls are heard from now on, as soon as Valkey answers."""
        self._task = asyncio.create_task(self._run(), name="outbox-alarm")

    async def wait(self, timeout_seconds: float | None) -> Ring | None:
        """How it has rung since the last wait, at once if so; None after the time-out, if any. For one task alone.

        What rings from now on is for the next wait: read rows afterwards, and none is missed.
        """
        try:
            async with asyncio.timeout(timeout_seconds):  # wait_for loses a cancellation that comes with the call
                await self._rung.wait()
        except TimeoutError:
            return None
        self._rung.clear()
        called, self._called = self._called, False
        return Ring.CALLED if called else Ring.FOUND

    def ring(self) -> None:
        """Whoever waits goes on."""
        self._rung.set()

    async def close(self) -> None:
        """Nothing runs and no connection is open afterwards."""
        if self._task is not None:
            await _ended(self._task)
        await self._redis.aclose()

    async def _run(self) -> None:
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as subscribed:
                    await subscribed.subscribe(self._channel)
                    self.ring()  # what was called while nobody listened
                    while True:
                        message = await subscribed.get_message(timeout=PING_SECONDS)
                        if message is None:
                            await subscribed.ping()  # raises when the connection has died without a word
                        elif message["type"] == "message":  # and not the answer to the ping
                            self._called = True
                            self.ring()
            except (RedisError, OSError) as error:
                log.warning("outbox.alarm_silent", error=repr(error))
                await asyncio.sleep(PAUSE_AFTER_FAILURE_SECONDS)
