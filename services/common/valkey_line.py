"""One connection to a Valkey or Redis, used by many at once: commands as they come, replies in their order.

redis-py opens it (URL, TLS, AUTH, SELECT), hiredis packs and parses. Not used is redis-py's client, whose way there and
back costs three times what the command does, and gives each command a connection of its own: a system call each.
"""

import asyncio
from collections import deque
from typing import Any, Final

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

Argument = str | bytes | int

CONNECT_SECONDS: Final = 1.0  # whoever waits for it gives up sooner, and the next one waits for the same


class Line:
    """Opened when it is first asked, and anew when it was lost. There is no time-out: who asks has a deadline."""

    def __init__(self, url: str) -> None:
        self._factory: Final = ConnectionPool.from_url(
            url, protocol=2, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._wire: _Wire | None = None
        self._opening: asyncio.Task[_Wire] | None = None

    async def ask(self, *command: Argument) -> Any:
        """The reply. ResponseError when it is one, any other of redis-py's, or OSError, when there is none.

        Who is cancelled has asked all the same: the reply comes, is taken from the line, and is nobody's.
        """
        wire = self._wire
        if wire is None or not wire.is_open:
            if self._opening is None:
                self._opening = asyncio.create_task(self._open())
            wire = await asyncio.shield(self._opening)
        return await wire.ask(command)

    def give_up(self, reason: str) -> None:
        """Whoever waits for a reply is told at once that there will be none; the next asks over a new connection."""
        if self._wire is not None:
            self._wire.end(reason)

    async def close(self) -> None:
        """It is not open."""
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        self.give_up("closed")

    async def _open(self) -> "_Wire":
        connection = self._factory.make_connection()  # type: ignore[no-untyped-call] # as redis-py has it
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.connect()
            self._wire = _Wire(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            self._opening = None
        return self._wire


class _Wire(asyncio.Protocol):
    """An open connection, until it has ended."""

    def __init__(self, connection: AbstractConnection) -> None:
        self.is_open = True
        # Taken from redis-py's object, which has had all its replies, and closes what it has when it is forgotten.
        self._writer, connection._writer = connection._writer, None
        if self._writer is None:
            raise RedisConnectionError("closed while it was opened")
        self._transport = self._writer.transport
        self._transport.set_protocol(self)
        self._replies = hiredis.Reader(replyError=_refusal)
        self._waiting: deque[asyncio.Future[Any]] = deque()

    async def ask(self, command: tuple[Argument, ...]) -> Any:
        """See `Line`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._transport.write(hiredis.pack_command(command))  # type: ignore[arg-type] # its stub: tuples of one
        self._waiting.append(future)
        return await future

    def end(self, reason: str) -> None:
        """It is closed, and who waits is told."""
        self.is_open = False
        self._transport.abort()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(RedisConnectionError(reason))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._replies.feed(data)
            while (reply := self._replies.gets()) is not False:
                future = self._waiting.popleft()
                if future.done():  # cancelled
                    continue
                if isinstance(reply, ResponseError):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
        except (hiredis.HiredisError, IndexError) as error:  # no RESP, or nobody has asked for it
            self.end(f"what came is no reply: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.end("the server has closed the connection" if exc is None else f"the connection is lost: {exc!r}")


def _refusal(text: str) -> ResponseError:
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)
