"""A memcached of the test's own, which may be killed and frozen, and a look into it."""

import asyncio
import os
import pwd
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from services.common.cache_memcached import LEASED
from services.common.memcached import Line
from tests.conftest import free_port
from tests.faults.waiting import eventually
from tests.freezing import freeze

HOST = "127.0.0.1"


@dataclass
class Memcached:
    """Debian's, in memory only, so that it is empty after each start."""

    port: int
    flags: tuple[str, ...] = ()
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """For a cache."""
        return f"memcached://{HOST}:{self.port}"

    async def start(self) -> None:
        """It answers."""
        program = shutil.which("memcached")
        if program is None:
            pytest.skip("there is no memcached in PATH")
        user = pwd.getpwuid(os.getuid()).pw_name  # root has to say that it means itself
        self.process = await asyncio.create_subprocess_exec(
            program, "-u", user, "-l", HOST, "-p", str(self.port), "-U", "0", "-m", "64", *self.flags
        )
        await eventually(self._answers, "memcached answers", every=0.005)

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

    async def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.returncode is None, "memcached has ended"
        try:
            line = await Line(HOST, self.port).open()
        except ConnectionError:
            return False
        line.close()
        return True


@asynccontextmanager
async def memcached(*flags: str) -> AsyncIterator[Memcached]:
    """One that is gone afterwards."""
    server = Memcached(free_port(), flags)
    await server.start()
    try:
        yield server
    finally:
        assert server.process is not None
        if server.process.returncode is None:
            await server.kill()


@dataclass
class Looking:
    """What there is, by the names of a `Key`, as it would be asked of a Valkey. The lease is in the value's place."""

    line: Line

    async def get(self, name: str) -> bytes | None:
        """What is there."""
        leases = ":l:{" in name
        (found,) = await self.line.ask(f"mg {name.replace(':l:{', ':v:{')} v\r\n".encode())
        is_lease = found.data.startswith(LEASED)
        return found.data if found.code == b"VA" and is_lease == leases else None

    async def set(self, name: str, value: bytes | str, ex: int = 0) -> None:
        """It is there, for `ex` seconds."""
        data = value.encode() if isinstance(value, str) else value
        (stored,) = await self.line.ask(b"ms %s %d T%d\r\n%s\r\n" % (name.encode(), len(data), ex, data))
        assert stored.code == b"HD"

    async def seconds_left(self, name: str) -> int:
        """Until it is gone, as the server's clock has ticked."""
        (found,) = await self.line.ask(f"mg {name} t\r\n".encode())
        return int(found.flag(b"t"))

    async def delete(self, *names: str) -> None:
        """Nothing is there."""
        await self.line.ask(b"".join(b"md %s\r\n" % name.replace(":l:{", ":v:{").encode() for name in names))

    async def aclose(self) -> None:
        """The connection is closed."""
        self.line.close()


async def looking(port: int) -> Looking:
    """At the one on this port."""
    return Looking(await Line(HOST, port).open())
