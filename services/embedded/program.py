"""One child of the supervisor: what to run, how to see that it is ready, how to ask it to end."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.embedded.accounts import Account
from services.embedded.settings import HOST

_ANSWER_SECONDS = 5  # a readiness check of ours asks the database, which may be busy


@dataclass(frozen=True)
class Program:
    """A command that stays in the foreground. `env` is its whole environment, `ready` may be asked at any time."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready: Callable[[], Awaitable[bool]]
    ports: tuple[int, ...] = ()
    directory: Path | None = None
    account: Account | None = None
    must_reach: tuple[Path, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    start_seconds: float = 60
    grace_seconds: float = 10


class Part(Protocol):
    """What a stack is made of: a server, or one of our processes."""

    @property
    def name(self) -> str:
        """Of its log, its record and in messages."""

    @property
    def ports(self) -> tuple[int, ...]:
        """It will listen on these of 127.0.0.1."""

    async def prepare(self) -> Program:
        """Called before each start: its files exist and are whole, and nothing of a former run is in its way."""


async def answers(port: int, path: str) -> bool:
    """An HTTP server on that port says 200 to GET `path`."""
    request = f"GET {path} HTTP/1.0\r\nHost: {HOST}\r\n\r\n"
    status = await exchange(port, request.encode(), len(b"HTTP/1.1 200"))
    return status is not None and status.endswith(b" 200")


async def exchange(port: int, request: bytes, answer_bytes: int) -> bytes | None:
    """The beginning of what a server on that port answers; None when nobody is there or says as much."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(request)
                return await reader.readexactly(answer_bytes)
            finally:
                writer.close()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None
