"""How long an answer that was replaced is still given: acknowledged writes held against every answer.

An answer is stale when it was sent for after a newer version had been acknowledged. The age of a write at a process is
the time from its acknowledgement until the last stale answer there was received, 0 when there was none. Bounds are held
against when it was asked for: how long an answer then took is another matter.
"""

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.keepalive import Answer


@dataclass(frozen=True)
class Thing:
    """What is written and read: an order or a product's stock."""

    kind: str
    path: str


@dataclass
class Write:
    """One that was acknowledged, and until when each process gave something older."""

    version: int
    acknowledged_at: float
    stale_until: dict[str, float] = field(default_factory=dict)


@dataclass
class Figures:
    """Ages in seconds, of one per write and process."""

    writes: int
    stale: int
    p50: float
    p99: float
    p999: float
    worst: float

    def __str__(self) -> str:
        ms = ", ".join(
            f"{name} {seconds * 1000:.0f}"
            for name, seconds in (("p50", self.p50), ("p99", self.p99), ("p99.9", self.p999), ("worst", self.worst))
        )
        return f"{self.stale} of {self.writes} stale, {ms} ms"


@dataclass
class Staleness:
    """All writes of all things, and what was answered."""

    processes: Sequence[str]
    writes: dict[Thing, list[Write]] = field(default_factory=lambda: defaultdict(list))
    newest: dict[tuple[str, Thing], Answer] = field(default_factory=dict)
    outcomes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))  # by process
    answers: Counter[str] = field(default_factory=Counter)  # by kind
    stale: Counter[str] = field(default_factory=Counter)  # by kind
    asked_after: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # seconds, the longest, by kind
    backwards: int = 0  # answers older than the last one of the same process

    def acknowledged(self, thing: Thing, version: int, at: float) -> None:
        """Whoever asks from `at` on is to see that version."""
        writes = self.writes[thing]
        assert not writes or writes[-1].version < version, f"{thing}: {version} after {writes[-1].version}"
        writes.append(Write(version, at))

    def answered(self, process: str, thing: Thing, answer: Answer) -> None:
        """A process has answered a read."""
        self.answers[thing.kind] += 1
        self.outcomes[process][answer.outcome] += 1
        before = self.newest.get((process, thing))
        self.backwards += before is not None and before.version > answer.version
        self.newest[process, thing] = answer
        writes = self.writes[thing]
        newer = bisect_right(writes, answer.version, key=lambda write: write.version)
        missed = [write for write in writes[newer:] if write.acknowledged_at <= answer.sent_at]
        self.stale[thing.kind] += bool(missed)
        for write in missed:
            write.stale_until[process] = answer.received_at
            late = answer.sent_at - write.acknowledged_at
            self.asked_after[thing.kind] = max(late, self.asked_after[thing.kind])

    def behind(self, thing: Thing) -> list[str]:
        """Processes that have not yet given the newest version, as it is kept or without a cache."""
        version = self.writes[thing][-1].version
        seen = {process: self.newest.get((process, thing)) for process in self.processes}
        return [
            process
            for process, answer in seen.items()
            if answer is None or answer.version < version or answer.outcome == "miss"
        ]

    def figures(self, kind: str) -> Figures:
        """Of all writes of that kind."""
        ages = sorted(
            max(0.0, write.stale_until.get(process, 0.0) - write.acknowledged_at)
            for thing, writes in self.writes.items()
            if thing.kind == kind
            for write in writes
            for process in self.processes
        )
        at = [ages[math.ceil(len(ages) * share) - 1] for share in (0.5, 0.99, 0.999, 1.0)]
        return Figures(len(ages), sum(age > 0 for age in ages), *at)
