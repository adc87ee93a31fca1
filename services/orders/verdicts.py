"""What `orders verify` has to say: a verdict on each invariant."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Final

from services.orders.rules import Invariant
from services.orders.tally import Tally

SHOWN_MAX: Final = 20  # violations of one invariant: enough to see what they have in common


@dataclass(frozen=True, slots=True)
class Violation:
    """`id` is an order, a product or a partition."""

    id: str
    detail: str


@dataclass(slots=True)
class Verdict:
    """What was found about one invariant; at most SHOWN_MAX violations. A fold's time is with the order rows."""

    name: str
    repair: str
    rows: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    @property
    def messages(self) -> list[str]:
        """Each violation in a sentence that ends with its repair."""
        return [f"{self.name}: {violation.id}: {violation.detail}. {self.repair}" for violation in self.violations]

    def add(self, violations: Iterable[Violation]) -> None:
        """They are shown, as far as there is room."""
        self.violations += islice(violations, SHOWN_MAX - len(self.violations))

    def merge(self, other: "Verdict") -> None:
        """What was found about the same invariant elsewhere is counted in."""
        self.rows += other.rows
        self.seconds += other.seconds
        self.add(other.violations)


@dataclass(frozen=True, slots=True)
class Report:
    """One verdict an invariant, in the order of INVARIANTS.

    `as_of`: on a replica, by when all that was committed has been looked at. `repeated`: snapshots that were lost, and
    taken again.
    """

    verdicts: tuple[Verdict, ...]
    as_of: datetime | None
    repeated: int

    @property
    def violated(self) -> list[str]:
        """The names of the invariants that do not hold."""
        return [verdict.name for verdict in self.verdicts if verdict.violations]


@dataclass(slots=True)
class Found:
    """What was found in some months."""

    verdicts: dict[str, Verdict]
    tally: Tally = field(default_factory=Tally)
    repeated: int = 0

    def merge(self, other: "Found") -> None:
        """It is counted in."""
        for name, verdict in other.verdicts.items():
            self.verdicts[name].merge(verdict)
        self.tally.merge(other.tally)
        self.repeated += other.repeated


def none_yet(invariants: Iterable[Invariant]) -> dict[str, Verdict]:
    """Verdicts by their names, before anything was looked at."""
    return {invariant.name: Verdict(invariant.name, invariant.repair) for invariant in invariants}
