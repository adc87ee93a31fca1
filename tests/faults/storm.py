"""Faults of the parts of a stack, each at a moment taken by chance, many at once; and each is seen to have happened."""

import asyncio
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil

from services.embedded.supervisor import Stack
from tests.faults.toxiproxy import Cut, Proxy
from tests.faults.waiting import eventually

FROZEN_SECONDS = 10.0
CUT_SECONDS = 3.0
WELL_WITHIN_SECONDS = 20.0
AGAIN_WITHIN_SECONDS = 1.0  # in a burst: it has hardly begun to work
SERVES_WITHIN_SECONDS = 240.0  # the gateway waits for Kafka, which may be killed eight times in a row meanwhile
_EVERY_SECONDS = 0.05

Fault = Callable[[], Awaitable[None]]


@dataclass
class Storm:
    """Faults of each part come one after the other, of different parts at the same time.

    Before a part is hit again something of what it does comes to its end (`arrived` counts it), so that the fault meets
    it at work. When that takes long, as others were hit meanwhile, it is hit all the same.
    """

    stack: Stack
    seed: int
    fired: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    at_work: Counter[str] = field(default_factory=Counter)  # faults that met the part well and busy

    @property
    def told(self) -> str:
        """Figures."""
        fired = ", ".join(f"{part} {dict(times)}" for part, times in self.fired.items())
        return f"{fired}; found at work {dict(self.at_work)}"

    async def over(
        self, part: str, faults: Sequence[Fault], *, arrived: Callable[[], int], pause_seconds: tuple[float, float]
    ) -> None:
        """All of `faults` have hit `part`, in an order taken by chance, each after a pause between these bounds."""
        chance = random.Random(f"{self.seed} {part}")
        for fault in chance.sample(faults, len(faults)):
            self.at_work[part] += await _works(arrived)
            await asyncio.sleep(chance.uniform(*pause_seconds))
            await fault()

    def kills(self, part: str, bursts: Sequence[int]) -> list[Fault]:
        """SIGKILL, so many times one after the other, each time as soon as it serves again or a little later."""
        return [partial(self._kill, part, times) for times in bursts]

    def freezes(self, part: str, times: int = 1) -> list[Fault]:
        """SIGSTOP for 10 s, so many times."""
        return [partial(self._freeze, part)] * times

    def ends(self, part: str, times: int = 1) -> list[Fault]:
        """SIGTERM, so many times."""
        return [partial(self._end, part)] * times

    def cuts(self, part: str, proxy: Proxy, request: bytes) -> list[Fault]:
        """The connections to `part` are cut for some seconds, in each way once. `request` is one it would answer."""
        return [partial(self._cut, part, proxy, request, how) for how in Cut]

    async def _kill(self, part: str, times: int) -> None:
        chance = random.Random(f"{self.seed} {part} {self.fired[part]}")
        for number in range(times):
            await asyncio.sleep(chance.uniform(0, AGAIN_WITHIN_SECONDS) if number else 0)
            pid = self.stack.pid(part)
            assert pid, f"{part} was dead before it was killed"
            await self.stack.kill(part)
            assert not psutil.pid_exists(pid), f"{part} survived"
            self.fired[part]["killed"] += 1
            await self.stack.ready(part, timeout_seconds=SERVES_WITHIN_SECONDS)
            assert self.stack.pid(part) not in {pid, None}

    async def _end(self, part: str) -> None:
        pid = self.stack.pid(part)
        assert pid, f"{part} was dead before it was ended"
        self.stack.send_signal(part, signal.SIGTERM)

        async def gone() -> bool:
            return not psutil.pid_exists(pid)

        await eventually(gone, f"{part} ends", seconds=60)
        self.fired[part]["ended"] += 1
        await self.stack.ready(part, timeout_seconds=SERVES_WITHIN_SECONDS)

    async def _freeze(self, part: str) -> None:
        pid = self.stack.pid(part)
        assert pid, f"{part} was dead before it was frozen"
        frozen = psutil.Process(pid)
        self.stack.send_signal(part, signal.SIGSTOP)
        try:

            async def stopped() -> bool:
                return frozen.status() == psutil.STATUS_STOPPED

            await eventually(stopped, f"{part} stands still", seconds=5)
            used = frozen.cpu_times()
            await asyncio.sleep(FROZEN_SECONDS)
            assert frozen.cpu_times() == used, f"{part} went on"
            self.fired[part]["frozen"] += 1
        finally:
            self.stack.send_signal(part, signal.SIGCONT)
        assert self.stack.pid(part) == pid

    async def _cut(self, part: str, proxy: Proxy, request: bytes, how: Cut) -> None:
        lasting = asyncio.create_task(asyncio.sleep(CUT_SECONDS))
        await proxy.cut(how)
        assert await proxy.met(request) == how
        await lasting
        await proxy.mended(how)
        self.fired[part][how.name.lower()] += 1


async def _works(arrived: Callable[[], int]) -> bool:
    """Whether something arrives within the time."""
    seen, deadline = arrived(), time.monotonic() + WELL_WITHIN_SECONDS
    while arrived() == seen and time.monotonic() < deadline:
        await asyncio.sleep(_EVERY_SECONDS)
    return arrived() > seen
