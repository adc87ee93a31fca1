"""Parts of a whole stack, and how each is taken away or slowed for a while: seen to be so, and undone afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import psutil

from services.embedded.supervisor import Stack
from tests.faults.toxiproxy import Cut, Proxy
from tests.faults.waiting import eventually

LATENCY_SECONDS: Final = 0.2
JITTER_SECONDS: Final = 0.05


class How(StrEnum):
    """What becomes of a part."""

    KILLED = "killed"  # SIGKILL, and its connections are refused until it is back
    FROZEN = "frozen"  # SIGSTOP: its connections stay, and nobody answers on them
    SLOWED = "slowed"  # its answers come late by 200 ms, give or take 50; of a worker, those it waits for


@dataclass(frozen=True)
class Part:
    """`processes` of a stack that are hit together.

    Others come to it by `fronts`. One that nobody calls comes to others by `backs`: their answers make it slow.
    What is at the other end of either answers `request`.
    """

    name: str
    processes: tuple[str, ...]
    fronts: tuple[Proxy, ...] = ()
    backs: tuple[Proxy, ...] = ()
    request: bytes = b""


@asynccontextmanager
async def hurt(stack: Stack, part: Part, how: How) -> AsyncIterator[None]:
    """Inside, the part is as `how` says; afterwards it serves as before."""
    async with {How.KILLED: _killed, How.FROZEN: _frozen, How.SLOWED: _slowed}[how](stack, part):
        yield


@asynccontextmanager
async def _killed(stack: Stack, part: Part) -> AsyncIterator[None]:
    try:
        for proxy in part.fronts:
            await proxy.cut(Cut.DOWN)
        for process in part.processes:
            pid = stack.pid(process)
            assert pid, f"{process} was dead before it was killed"
            await stack.kill(process)
            assert not psutil.pid_exists(pid), f"{process} survived"
        for proxy in part.fronts:
            assert await proxy.met(part.request) == Cut.DOWN
        yield
    finally:
        for process in part.processes:
            await stack.ready(process)
        for proxy in part.fronts:
            await proxy.mended(Cut.DOWN)


@asynccontextmanager
async def _frozen(stack: Stack, part: Part) -> AsyncIterator[None]:
    frozen: list[psutil.Process] = []
    try:
        for process in part.processes:
            pid = stack.pid(process)
            assert pid, f"{process} was dead before it was frozen"
            frozen.append(first := psutil.Process(pid))
            first.suspend()
            await eventually(partial(_still, [first]), f"{process} stands still", seconds=5)
            frozen += (children := first.children(recursive=True))  # PostgreSQL has one for each connection
            for child in children:
                child.suspend()
        await eventually(partial(_still, frozen), f"{part.name} stands still", seconds=5)
        yield
        assert await _still(frozen), f"{part.name} went on"
    finally:
        for one in reversed(frozen):  # children first: whom their parent has forgotten, nobody can wake
            one.resume()


async def _still(processes: list[psutil.Process]) -> bool:
    """A child that ended just before is a zombie for as long as its parent stands still."""
    return all(one.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE} for one in processes)


@asynccontextmanager
async def _slowed(_: Stack, part: Part) -> AsyncIterator[None]:
    proxies = part.fronts + part.backs
    for proxy in proxies:
        await proxy.slow(LATENCY_SECONDS, JITTER_SECONDS)
    try:
        took = await asyncio.gather(*(proxy.answer_seconds(part.request) for proxy in proxies))
        assert min(took) >= LATENCY_SECONDS - JITTER_SECONDS, f"{part.name} is not slow: {took}"
        yield
    finally:
        for proxy in proxies:
            await proxy.sped_up()
