"""One connection to a memcached (1.6 and newer), used by many at once: batches of meta commands, answered in order.

memcachio keeps the connection and the queue of who waits for an answer. Not used of it are its pool, which loses a
place for every call that is cancelled while it connects, and its commands, which are no meta commands.
Source: memcached's doc/protocol.txt, "Meta Commands".
"""

import asyncio
import weakref
from collections.abc import Sequence
from io import BytesIO
from typing import Final, NamedTuple

from memcachio import TCPConnection
from memcachio.commands import Command, Request
from memcachio.constants import Commands
from memcachio.errors import NotEnoughData, ServerError
from memcachio.types import SingleMemcachedInstanceEndpoint

CONNECT_SECONDS: Final = 1.0  # whoever waits for it gives up sooner, and the next one waits for the same
SILENT_SECONDS: Final = 1.0  # without an answer, after which the connection is taken for dead
NAME_BYTES_MAX: Final = 250
TOO_LARGE: Final = b"SERVER_ERROR object too large"
ERRORS: Final = (b"ERROR", b"CLIENT_ERROR", b"SERVER_ERROR")


class Reply(NamedTuple):
    """To a command: `HD` done, `VA` with data, `EN` or `NF` nothing there, `NS` not stored, `EX` changed meanwhile."""

    code: bytes
    flags: Sequence[bytes]
    data: bytes = b""

    def flag(self, letter: bytes) -> bytes:
        """What came back with the flag. LookupError when it did not."""
        for flag in self.flags:
            if flag.startswith(letter):
                return flag[1:]
        raise LookupError(f"no flag {letter!r} in {self.flags!r}")


def name(text: str) -> bytes:
    """As it is sent. ValueError for what would not be one name: memcached would read on in it."""
    sent = text.encode()
    if not 0 < len(sent) <= NAME_BYTES_MAX or any(byte <= 0x20 or byte == 0x7F for byte in sent):
        raise ValueError(f"{text[:NAME_BYTES_MAX]!r} can be no name in memcached")
    return sent


class Line(TCPConnection):
    """A connection. It is not opened again: whoever asks twice may count on having asked the same server process."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            (host, port), connect_timeout=CONNECT_SECONDS, read_timeout=SILENT_SECONDS, socket_nodelay=True
        )
        self.is_open = True  # or about to be

    async def open(self) -> "Line":
        """It is, or ConnectionError."""
        try:
            await self.connect()
        except BaseException:
            self.close()
            raise
        return self

    async def ask(self, commands: bytes) -> list[Reply]:
        """The replies, of those commands that reply. ServerError when one was refused; the others were done.

        Who is cancelled has asked all the same: the answer comes, is taken from the line, and is nobody's.
        """
        if not self.is_open:
            raise ConnectionError("memcached has closed the connection")
        batch = _Batch(commands)
        self.create_request(batch)
        batch.response.add_done_callback(self._answered)
        return await asyncio.shield(batch.response)

    def close(self) -> None:
        """Who waits is told that there will be no answer."""
        self.is_open = False
        super().close()

    def eof_received(self) -> None:
        """The server has closed it."""
        self.is_open = False
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has broken, or is closed."""
        self.is_open = False
        super().connection_lost(exc)

    def _answered(self, response: "asyncio.Future[list[Reply]]") -> None:
        if not response.cancelled() and isinstance(response.exception(), TimeoutError):
            self.close()


class _Verbatim(Request[list[Reply]]):
    def __bytes__(self) -> bytes:
        return self.header


class _Batch(Command[list[Reply]]):
    """Commands, and one more that says when all have been answered: some answer only when there is something to say."""

    name = Commands.GET  # it is to be one of the library's; used in what it says of a time-out

    def __init__(self, commands: bytes) -> None:
        super().__init__()
        self._commands = commands

    def build_request(self) -> Request[list[Reply]]:
        """See `Command`."""
        return _Verbatim(weakref.proxy(self), self._commands + b"mn\r\n")

    def parse(self, data: BytesIO, endpoint: SingleMemcachedInstanceEndpoint) -> list[Reply]:  # noqa: ARG002
        """See `Command`: NotEnoughData puts everything back, until more has come."""
        begin, replies = data.tell(), list[Reply]()
        refused: bytes | None = None
        while True:
            line = data.readline()
            if not line.endswith(b"\r\n"):
                raise NotEnoughData(data.tell() - begin)
            code, *flags = line.split()
            if code == b"MN":
                break
            if code in ERRORS:  # all is read before it is raised, or the rest would be the next one's
                refused = refused or line.strip()
            elif code == b"VA":
                size = int(flags.pop(0))
                value = data.read(size + 2)
                if len(value) < size + 2:
                    raise NotEnoughData(data.tell() - begin)
                replies.append(Reply(code, flags, value[:-2]))
            else:
                replies.append(Reply(code, flags))
        if refused:
            raise TooLargeError(refused.decode()) if refused.startswith(TOO_LARGE) else ServerError(refused.decode())
        return replies


class TooLargeError(ServerError, ValueError):
    """The value is larger than the server takes (1 MiB, if it is not told otherwise)."""
