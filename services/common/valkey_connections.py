"""Connections to one Valkey or Redis, for whoever sends it many short commands.

redis-py makes them (handshake, TLS, RESP). Not used are its client and its pool, which cost three times what a command
does.
"""

import asyncio
from typing import Any, Final

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

Argument = str | bytes | int


class Connections:
    """Up to `most` at once, each used by one command at a time.

    There are no time-outs here: whoever asks has a deadline for the whole of it, and who is cancelled closes the
    connection, so that the reply is nobody else's. redis-py's own are each for a part, and swallow a cancellation that
    meets them.
    """

    def __init__(self, url: str, *, most: int) -> None:
        self._factory: Final = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        )
        self._idle: Final[list[AbstractConnection]] = []
        self._places: Final = asyncio.Semaphore(most)

    async def ask(self, *command: Argument) -> Any:
        """The reply. ResponseError when it is one, any other of redis-py's when there is none.

        A command may reach the server twice: a connection that was idle may have been closed by a server that has
        been restarted since, which is seen when it is used, and then the command is sent over a new one.
        """
        async with self._places:
            if self._idle:
                try:
                    return await self._ask(self._idle.pop(), command)
                except RedisConnectionError:
                    await self._drop_idle()  # of the same server
            connection = self._factory.make_connection()  # type: ignore[no-untyped-call] # as redis-py has it
            return await self._ask(connection, command)

    async def close(self) -> None:
        """None is open."""
        await self._drop_idle()

    async def _ask(self, connection: AbstractConnection, command: tuple[Argument, ...]) -> Any:
        try:
            await connection.send_command(*command, check_health=False)  # connects it first, if it is not
            reply = await connection.read_response()
        except ResponseError:
            self._idle.append(connection)
            raise
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return reply

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)
