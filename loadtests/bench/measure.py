"""Ours and its limits alternately in one run (A B B A), and what the rounds say together."""

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from loadtests.bench.said import say

# Of latency. Of a closed loop: who is answered late asks late, so these say less of waiting than an open loop's would.
PERCENTILES: Final = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9)


class VoidError(Exception):
    """What was measured is not what should have been: there is no figure."""


@dataclass(frozen=True, slots=True)
class Work:
    """What was done, in how many seconds, and how long one took (in the order of PERCENTILES; empty: not told)."""

    count: int
    seconds: float
    latencies_ms: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared. `run` works for about so many seconds; `cpu` is what its process has used until now."""

    name: str
    run: Callable[[float], Awaitable[Work]]
    cpu: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often. `quick`: each side once, only to see whether it works; the figures mean nothing."""

    rounds: int
    seconds: float
    warm_seconds: float
    quick: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sides, ours first, that do the same work.

    `facts` are found out about it besides, once the turns it is given are done; it raises VoidError when what it finds
    is not what they should have left.
    """

    name: str
    unit: str
    sides: Sequence[Side]
    facts: Callable[[Sequence["Phase"]], Awaitable[dict[str, Any]]] | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """One side's turn. CPU in microseconds for each of `count`: of its process, and of PostgreSQL with all of its."""

    side: str
    started_at: float  # seconds since the comparison began
    count: int
    seconds: float
    process_us: float
    postgres_us: float
    latencies_ms: tuple[float, ...]

    @property
    def rate(self) -> float:
        """A second."""
        return self.count / self.seconds


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours to a limit, of each round; above 1 ours is faster."""

    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a comparison has found."""

    name: str
    unit: str
    sides: tuple[str, ...]
    rounds: int
    phases: tuple[Phase, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def of(self, side: str) -> list[Phase]:
        """Its turns, in their order."""
        return [phase for phase in self.phases if phase.side == side]

    def rate(self, side: str) -> float:
        """A second: median of its turns."""
        return statistics.median(phase.rate for phase in self.of(side))

    def cpu_us(self, side: str) -> tuple[float, float]:
        """For each of what was done, of its process and of PostgreSQL: medians of its turns."""
        turns = self.of(side)
        return statistics.median(t.process_us for t in turns), statistics.median(t.postgres_us for t in turns)

    def latencies_ms(self, side: str) -> list[float]:
        """By PERCENTILES, the median of its turns; empty when they tell none."""
        return [statistics.median(each) for each in zip(*(t.latencies_ms for t in self.of(side)), strict=True)]

    def ratio(self, limit: str) -> Ratio:
        """Of ours to `limit`, round by round: what disturbs both alike falls out of it."""
        ours, theirs = self._by_round(self.sides[0]), self._by_round(limit)
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        return Ratio(statistics.median(ratios), min(ratios), max(ratios))

    def _by_round(self, side: str) -> list[float]:
        phases = self.of(side)
        each = len(phases) // self.rounds
        return [statistics.mean(phase.rate for phase in phases[n * each : (n + 1) * each]) for n in range(self.rounds)]

    def content(self) -> dict[str, Any]:
        """For JSON; the ratios are in it for who reads that alone."""
        return {**asdict(self), "ratios": {limit: asdict(self.ratio(limit)) for limit in self.sides[1:]}}

    @classmethod
    def read(cls, content: dict[str, Any]) -> "Result":
        """What `content` was made of."""
        phases = tuple(Phase(**{**one, "latencies_ms": tuple(one["latencies_ms"])}) for one in content["phases"])
        named = {name: content[name] for name in ("name", "unit", "rounds", "facts")}
        return cls(**named, sides=tuple(content["sides"]), phases=phases)


async def alternate(comparison: Comparison, plan: Plan, postgres: Callable[[], float]) -> Result:
    """Each round is all sides there and back again (A B B A), so that what only grows or cools down meets them alike.

    `postgres` gives the CPU seconds of PostgreSQL until now.
    """
    began = time.perf_counter()
    phases: list[Phase] = []
    order = [*comparison.sides, *([] if plan.quick else reversed(comparison.sides))]

    async def turn(side: Side) -> Phase:
        process_before, postgres_before, started_at = side.cpu(), postgres(), time.perf_counter() - began
        work = await side.run(plan.seconds)
        if not work.count:
            raise VoidError(f"{comparison.name}: {side.name} has done nothing")
        each = 1e6 / work.count
        return Phase(
            side.name,
            started_at,
            work.count,
            work.seconds,
            (side.cpu() - process_before) * each,
            (postgres() - postgres_before) * each,
            work.latencies_ms,
        )

    if plan.warm_seconds:
        for side in comparison.sides:
            await side.run(plan.warm_seconds)
    for number in range(1, plan.rounds + 1):
        turns = [await turn(side) for side in order]
        phases += turns
        told = (
            f"{side.name} {statistics.mean(one.rate for one in turns if one.side == side.name):,.0f}/s"
            for side in comparison.sides
        )
        say(f"{comparison.name}, round {number}: {', '.join(told)}")
    facts = await comparison.facts(phases) if comparison.facts else {}
    sides = tuple(side.name for side in comparison.sides)
    return Result(comparison.name, comparison.unit, sides, plan.rounds, tuple(phases), facts)


def summary(result: Result) -> list[str]:
    """In lines: rate and CPU of each side, and ours as a share of each limit with its spread."""
    lines = []
    for side in result.sides:
        process, postgres = result.cpu_us(side)
        line = f"{result.name}: {side} {result.rate(side):,.0f} {result.unit}/s, CPU of one: {process:.0f} us itself"
        line += f", {postgres:.0f} us PostgreSQL"
        if side != result.sides[0]:
            ratio = result.ratio(side)
            line += f"; ours to it {ratio.median:.3f} ({ratio.least:.3f}..{ratio.most:.3f})"
        lines.append(line)
    return lines
