"""What a watch does when its wire fails, to the turn of the loop."""

import asyncio
from collections.abc import Sequence

import pytest

from services.common.cache_events import Beat, Channel
from services.common.cache_watch import Watch

PATIENT_SECONDS = 10.0


class Wire:
    """Says nothing, until it fails."""

    def __init__(self) -> None:
        self.fails = asyncio.Event()
        self.closed = False

    async def beat(self) -> None:
        """Nobody answers."""

    async def hear(self) -> str | Beat:
        """Nothing."""
        await self.fails.wait()
        raise ConnectionError("cut")

    async def close(self) -> None:
        """It is not used any more."""
        self.closed = True


@pytest.mark.parametrize("turns", range(8))
async def test_it_ends_when_it_is_told_though_its_wire_fails_at_that_moment(turns: int) -> None:
    """A failure ends the same tasks, and must not hide that they were told to end."""
    wires: list[Wire] = []

    async def connect() -> Sequence[Channel]:
        wires.append(Wire())
        return wires[-1:]

    lost: list[bool] = []
    watch = Watch(connect, lambda _: None, lambda: lost.append(True))
    watch.start()
    while not wires:
        await asyncio.sleep(0)
    for _ in range(5):  # its tasks have begun
        await asyncio.sleep(0)
    wires[0].fails.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(PATIENT_SECONDS):
        await watch.close()
    assert all(wire.closed for wire in wires)
    assert lost
