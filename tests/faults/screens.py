"""Whoever looks: WebSockets that connect again after any failure, and remember what each connection brought."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

AGAIN_SECONDS = 0.3
OPEN_SECONDS = 5.0


@dataclass
class Screen:
    """What it had of each order: versions as they came, over all of its connections; and its latest event of each."""

    url: str
    token: str
    subscription: Callable[[Mapping[str, int]], dict[str, Any]]
    had: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    latest: dict[str, dict[str, Any]] = field(default_factory=dict)
    connections: int = 0
    ended: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def events(self) -> int:
        """How many it had."""
        return sum(map(len, self.had.values()))

    async def look(self) -> None:
        """Until cancelled."""
        try:
            await self._look()
        finally:
            self.ended = True
            self._changed.set()

    async def _look(self) -> None:
        protocols = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{self.token}")]
        while True:
            try:
                async with connect(
                    f"{self.url}/v1/stream", subprotocols=protocols, open_timeout=OPEN_SECONDS, compression=None
                ) as socket:
                    wanted = self.subscription({order_id: versions[-1] for order_id, versions in self.had.items()})
                    await socket.send(orjson.dumps({"subscribe": wanted}).decode())
                    self.connections += 1
                    async for text in socket:
                        self._take(orjson.loads(text))
            except (ConnectionClosed, InvalidHandshake, OSError):  # OSError: TimeoutError, too
                await asyncio.sleep(AGAIN_SECONDS)

    def _take(self, message: dict[str, Any]) -> None:
        assert "error" not in message, message
        if "version" in message:
            self.had[message["order_id"]].append(message["version"])
            self.latest[message["order_id"]] = message
            self._changed.set()

    async def shows(self, order_id: str, true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The order's newest event, as soon as `true` says so of it."""
        while not (event := self.latest.get(order_id)) or not true(event):
            assert not self.ended, "nobody looks any more"
            self._changed.clear()
            await self._changed.wait()
        return event

    def assert_contiguous(self) -> None:
        """What came of each order is a run without a gap, a step back or a repetition, whatever became of sockets."""
        for order_id, versions in self.had.items():
            assert versions == list(range(versions[0], versions[-1] + 1)), f"{order_id}: {versions}"


def of_all(url: str, token: str) -> Screen:
    """A screen with all orders of the token's owner: those it knows from where they were, others from their next."""
    return Screen(url, token, lambda known: {"all": True, "after": known})


def of_one(url: str, token: str, order_id: str) -> Screen:
    """A screen with one order, from its first event."""
    return Screen(url, token, lambda known: {"order_id": order_id, "after_version": known.get(order_id, 0)})


@asynccontextmanager
async def looking(screen: Screen) -> AsyncIterator[Screen]:
    """It looks until the end of the block; a failure of its own is raised there."""
    task = asyncio.create_task(screen.look())
    try:
        yield screen
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
