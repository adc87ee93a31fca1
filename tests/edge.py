"""nginx as `orders up --edge` starts it, in front of what a test wants, and an origin that says what it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from services.embedded.child import Child
from services.embedded.edge import Edge, nginx
from services.embedded.errors import StackError
from tests.conftest import free_port
from tests.faults.waiting import eventually

AS_IT_IS = (60, 300)
NOBODY = 1  # no service listens on this port


def public(seconds: tuple[int, int] = AS_IT_IS) -> str:
    """Cache-Control of what is fresh for so long, and may then be shown for so long while a newer one is fetched."""
    return "public, max-age={}, stale-while-revalidate={}".format(*seconds)


@dataclass
class Origin:
    """Answers every request alike; `requests` are those that came. While `open` is not set it does not answer."""

    seconds: tuple[int, int] = AS_IT_IS
    status: int = 200
    body: bytes = b"first"
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()
        self.headers.setdefault("Cache-Control", public(self.seconds))

    async def __call__(self, scope: Scope, _: Receive, send: Send) -> None:
        """One request (ASGI)."""
        target = scope["path"] + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        sent = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.requests.append(sent | {":method": scope["method"], ":target": target})
        await self.open.wait()
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else self.body})


@dataclass
class Running:
    """An edge that serves, and a client of it."""

    edge: Edge
    child: Child
    client: httpx.AsyncClient

    async def get(self, path: str, **headers: str) -> httpx.Response:
        """GET."""
        return await self.client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    def logged(self) -> list[dict[str, Any]]:
        """The lines of its access log that are whole."""
        lines = self.edge.access_log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    async def settled(self, count: int) -> list[dict[str, Any]]:
        """The access log, once it has so many lines."""

        async def there() -> list[dict[str, Any]]:
            lines = self.logged()
            return lines if len(lines) >= count else []

        return await eventually(there, f"{count} lines in the access log")


def kept(response: httpx.Response) -> str:
    """What the edge says it did (RFC 9211)."""
    said: str = response.headers.get("cache-status", "")
    return said.removeprefix("edge; ")


@asynccontextmanager
async def running(
    home: Path, origins: Mapping[str, int], *, seconds: tuple[int, int] = AS_IT_IS
) -> AsyncIterator[Running]:
    """An edge before these, stopped afterwards. `seconds` take the place of the 60 and the 300 of its configuration."""
    try:
        nginx()
    except StackError as error:
        pytest.skip(str(error))
    everywhere = dict.fromkeys(("orders", "catalog", "customers", "realtime"), NOBODY)
    edge = Edge(home / "edge", free_port(), {**everywhere, **origins})
    program = await edge.prepare()
    policies = home / "edge" / "configuration" / "policies.conf"
    text = policies.read_text()
    assert public() in text
    policies.write_text(text.replace(public(), public(seconds)))
    child = Child(edge, home, healthy_seconds=30)
    await child.start(program)
    try:
        # A connection for each request: on one whose request began an update nginx reads no further until that is done.
        alone = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=edge.url, timeout=20, limits=alone) as client:
            yield Running(edge, child, client)
    finally:
        await child.stop()
