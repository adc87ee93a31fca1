"""Toxiproxy: a proxy in front of a server, whose connections are cut by its HTTP API in the ways that networks do."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx

from services.embedded.program import answers
from tests.faults.waiting import eventually

_HOST = "127.0.0.1"
_SILENCE_SECONDS = 4.0  # far over what a server on this machine takes to answer
_SLOW = "SLOW"  # the name of a toxic
_LIMIT_BYTES = 6  # of an answer; what is asked for has more


class Cut(StrEnum):
    """How connections end, and what a client meets that opens one and asks (`Proxy.met`)."""

    DOWN = "refused"  # all are closed, new ones are refused
    RESET = "reset"  # each is answered with RST
    BROKEN_OFF = f"end after {_LIMIT_BYTES} bytes"  # each ends in the middle of an answer
    SILENT = "silence"  # they stay, and nothing passes: neither an answer nor an end


_TOXICS = {
    Cut.RESET: {"type": "reset_peer", "stream": "upstream", "attributes": {"timeout": 0}},
    Cut.BROKEN_OFF: {"type": "limit_data", "stream": "downstream", "attributes": {"bytes": _LIMIT_BYTES}},
    Cut.SILENT: {"type": "timeout", "stream": "upstream", "attributes": {"timeout": 0}},
}


def server() -> Path | None:
    """The program, when this machine has it: TOXIPROXY_SERVER, else where `make tools` puts it."""
    default = Path.home() / ".cache" / "order-backend" / "bin" / "toxiproxy-server"
    path = Path(os.environ.get("TOXIPROXY_SERVER") or default)
    return path if path.is_file() else None


@dataclass(frozen=True)
class Proxy:
    """`listen` (a port) passes everything on to `upstream` (another), until it is cut."""

    api: httpx.AsyncClient
    name: str
    listen: int
    upstream: int

    async def cut(self, how: Cut) -> None:
        """Every connection there is or will be meets this."""
        if how is Cut.DOWN:
            await self._ask("PATCH", "", enabled=False)
        else:
            await self._ask("POST", "/toxics", name=how.name, **_TOXICS[how])

    async def mended(self, how: Cut) -> None:
        """New connections pass again."""
        if how is Cut.DOWN:
            await self._ask("PATCH", "", enabled=True)
        else:
            await self._ask("DELETE", f"/toxics/{how.name}")

    async def slow(self, seconds: float, jitter_seconds: float) -> None:
        """Every answer comes late by so much, give or take the jitter, on open connections and on new ones."""
        attributes = {"latency": round(1000 * seconds), "jitter": round(1000 * jitter_seconds)}
        await self._ask("POST", "/toxics", name=_SLOW, type="latency", stream="downstream", attributes=attributes)

    async def sped_up(self) -> None:
        """It is no longer slow."""
        await self._ask("DELETE", f"/toxics/{_SLOW}")

    async def answer_seconds(self, request: bytes) -> float:
        """How long the first byte of an answer takes, on a connection of its own. TimeoutError when there is none."""
        reader, writer = await asyncio.open_connection(_HOST, self.listen)
        try:
            asked_at = time.monotonic()
            writer.write(request)
            async with asyncio.timeout(_SILENCE_SECONDS):
                assert await reader.read(1), "an end instead of an answer"
            return time.monotonic() - asked_at
        finally:
            writer.transport.abort()

    async def met(self, request: bytes) -> str:
        """What comes back to a client that asks `request` on a connection of its own: a `Cut`, or "an answer"."""
        try:
            reader, writer = await asyncio.open_connection(_HOST, self.listen)
        except ConnectionRefusedError:
            return Cut.DOWN
        try:
            writer.write(request)
            async with asyncio.timeout(_SILENCE_SECONDS):
                found = await reader.read(_LIMIT_BYTES + 1)
                return "an answer" if len(found) > _LIMIT_BYTES else f"end after {len(found)} bytes"
        except TimeoutError:
            return Cut.SILENT
        except ConnectionResetError:
            return Cut.RESET
        finally:
            writer.transport.abort()

    async def _ask(self, method: str, path: str, **body: object) -> None:
        (await self.api.request(method, f"/proxies/{self.name}{path}", json=body)).raise_for_status()


@asynccontextmanager
async def toxiproxy(program: Path, port: int, log: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Toxiproxy runs with its HTTP API on `port`; gives a client of it."""
    with log.open("wb") as output:
        running = await asyncio.create_subprocess_exec(
            str(program), "-host", _HOST, "-port", str(port), stdout=output, stderr=output
        )
    try:

        async def serves() -> bool:
            assert running.returncode is None, f"Toxiproxy has ended, see {log}"
            return await answers(port, "/version")

        await eventually(serves, "Toxiproxy serves")
        async with httpx.AsyncClient(base_url=f"http://{_HOST}:{port}") as api:
            yield api
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def proxied(api: httpx.AsyncClient, name: str, *, listen: int, upstream: int) -> Proxy:
    """A new proxy of that name."""
    body = {"name": name, "listen": f"{_HOST}:{listen}", "upstream": f"{_HOST}:{upstream}"}
    (await api.post("/proxies", json=body)).raise_for_status()
    return Proxy(api, name, listen, upstream)
