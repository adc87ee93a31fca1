"""Newline-delimited JSON, taken and given line by line while the other side is still sending: in bounded memory."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Final

import structlog
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

MEDIA_TYPE: Final = "application/x-ndjson"
LINE_BYTES_MAX: Final = 64 * 1024

_SENT_BYTES_MAX: Final = 64 * 1024  # handed to the server at once
_IN_MEMORY_BYTES_MAX: Final = 1024 * 1024  # of what the client has not read yet; more is in a file
_UNREAD_BYTES_MAX: Final = 1024**3  # of it, then no more is taken: verdicts on ten million lines

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a body, counted from 1, without its end. `content` is None when it has more than LINE_BYTES_MAX."""

    number: int
    content: bytes | None


class Splitter:
    """Makes lines of pieces of a body. Holds one line at most, and of one that is too long nothing."""

    def __init__(self) -> None:
        self._number = 0
        self._held = bytearray()
        self._too_long = False

    def feed(self, piece: bytes) -> Iterator[Line]:
        """The lines that end in `piece`, but for empty ones."""
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._hold(part)
            yield from self.end()
        self._hold(rest)

    def end(self) -> Iterator[Line]:
        """The line that is held, if any: it ends here."""
        self._number += 1
        content = bytes(self._held).strip(b" \t\r")
        if self._too_long:
            yield Line(self._number, None)
        elif content:
            yield Line(self._number, content)
        self._held.clear()
        self._too_long = False

    def _hold(self, part: bytes) -> None:
        if not self._too_long:
            self._held += part
            if len(self._held) > LINE_BYTES_MAX:
                self._too_long = True
                self._held = bytearray()  # clear() would keep its memory


class Unread:
    """What the client has not read yet. Whoever writes waits only when that is very much.

    A client that reads nothing before it has sent everything, as most do, must not stop the reading of what it sends:
    both sides would wait for ever.
    """

    def __init__(self) -> None:
        # Its reads and writes block for microseconds: they go to memory, or to the system's.
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES_MAX)  # noqa: SIM115 # closed by close
        self._written = self._read = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def write(self, content: bytes) -> None:
        """`content` will be sent."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._written - self._read < _UNREAD_BYTES_MAX)
            self._file.seek(self._written)
            self._file.write(content)
            self._written += len(content)
            self._changed.notify_all()

    async def end(self) -> None:
        """Nothing more is written."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What is written, as it comes, to its end."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self._read < self._written or self._ended)
                if self._read == self._written:
                    return
                self._file.seek(self._read)
                piece = self._file.read(_SENT_BYTES_MAX)
                self._read += len(piece)
                if self._read == self._written:  # a client that reads on needs no file
                    self._file.seek(0)
                    self._file.truncate()
                    self._read = self._written = 0
                self._changed.notify_all()
            yield piece

    def close(self) -> None:
        """The file is gone."""
        self._file.close()


class StreamedLines(Response):
    """200, and the lines that `work` writes, sent while it reads the body of `request`.

    Answers of this kind begin before anything is known to be right: what goes wrong is told in a line.
    """

    media_type = MEDIA_TYPE

    def __init__(
        self,
        request: Request,
        work: Callable[[AsyncIterator[bytes], Callable[[bytes], Awaitable[None]]], Awaitable[None]],
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers()
        self._request, self._work = request, work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 # ASGI's signature
        """Until all is sent, or the client has gone."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        unread = Unread()
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._written(unread))
                both.create_task(_sent(unread, send))
        except* ClientDisconnect:
            log.info("http.client_gone", method=scope["method"], path=scope["path"])
        except* Exception:
            log.exception("http.failed", method=scope["method"], path=scope["path"])
            raise  # the server ends the connection: the client sees an answer that was cut short
        finally:
            unread.close()

    async def _written(self, unread: Unread) -> None:
        await self._work(self._request.stream(), unread.write)
        await unread.end()


async def _sent(unread: Unread, send: Send) -> None:
    async for piece in unread.pieces():
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})
