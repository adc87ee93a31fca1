"""A Valkey of the test's own, which may be killed and frozen, and the wire to it, which may be slow and cut."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.embedded.polling import until
from services.embedded.valkey import Valkey
from tests.conftest import free_port
from tests.freezing import freeze


@dataclass
class Server:
    """As `make up` runs it, but for `flags`; nobody restarts it."""

    valkey: Valkey
    flags: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""
        return self.valkey.port

    @property
    def url(self) -> str:
        """For a cache."""
        return self.valkey.url

    async def start(self) -> None:
        """It answers."""
        program = await self.valkey.prepare()
        with (self.valkey.directory / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *program.argv, *self.flags, env=program.env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(30):
            await until(program.ready)

    async def kill(self) -> None:
        """It has died of SIGKILL."""
        assert self.process is not None
        self.process.kill()
        await self.process.wait()

    def freeze(self) -> None:
        """It runs no more, and keeps its connections."""
        assert self.process is not None
        freeze(self.process.pid)

    def thaw(self) -> None:
        """It goes on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@asynccontextmanager
async def serving(directory: Path, *flags: str) -> AsyncIterator[Server]:
    """One that is gone afterwards."""
    server = Server(Valkey(directory, free_port()), flags)
    await server.start()
    try:
        yield server
    finally:
        assert server.process is not None
        if server.process.returncode is None:
            await server.kill()


class Served(Protocol):
    """What a wire can lead to."""

    @property
    def port(self) -> int:
        """Of 127.0.0.1."""

    @property
    def url(self) -> str:
        """With this port in it."""


@dataclass
class Wire:
    """Passes bytes to a server on 127.0.0.1. Answers come late by `delay_seconds`, and end after `bytes_left`.

    While it is `severed`, every connection is closed as soon as it is opened.
    """

    server: "Served"
    delay_seconds: float = 0.0
    bytes_left: int | None = None
    severed: bool = False
    cuts: int = 0
    port: int = 0
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Wire"]:
        """It listens on `port`."""
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listening.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """Of what is at the other end."""
        return self.server.url.replace(f":{self.server.port}", f":{self.port}")

    def sever(self) -> None:
        """Nothing passes any more, in the middle of whatever it was, until `severed` is taken back."""
        self.severed = True
        for task in self._tasks:
            task.cancel()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._pass(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if not self.severed:
                await self._connected(reader, writer)
        finally:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.server.port)
            asking = asyncio.create_task(self._ask(reader, server_writer))
            try:
                while data := await server_reader.read(65_536):
                    await asyncio.sleep(self.delay_seconds)
                    if self.bytes_left is not None and self.bytes_left < len(data):
                        writer.write(data[: self.bytes_left])
                        await writer.drain()
                        self.cuts += 1
                        break
                    if self.bytes_left is not None:
                        self.bytes_left -= len(data)
                    writer.write(data)
                    await writer.drain()
            finally:
                asking.cancel()
                server_writer.close()

    async def _ask(self, reader: asyncio.StreamReader, server_writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                server_writer.write(data)
                await server_writer.drain()
        server_writer.close()  # who asked has gone
