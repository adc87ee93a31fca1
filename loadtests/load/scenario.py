"""The scenarios and objectives that k6 and Locust share: scenarios.json and objectives.json. Standard library only."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

FOLDER: Final = Path(__file__).resolve().parents[1]
OBJECTIVES: Final = FOLDER / "objectives.json"
_SCENARIOS: Final = FOLDER / "scenarios.json"

REPORT: Final = "get_sales"  # which only a stack with a replica answers
JOURNEY_SECONDS_MAX: Final = 2.0  # a journey that takes longer keeps a later one from beginning when it is due


class LoadError(Exception):
    """The load cannot be run; the text says why, and what to do."""


@dataclass(frozen=True)
class Objectives:
    """What a run has to meet; the fields are those of objectives.json. Times are in milliseconds.

    `serving` are the processes whose statements clients wait for.
    """

    response_ms_p99_below: float
    db_ms_p99_below: float
    statement_ms_p99_below: float
    serving: tuple[str, ...]
    reported_apart: tuple[str, ...]
    dropped_max: int
    failed_max: int
    p50_differs_by_at_most: float
    database_differs_by_at_most: float
    generator_cores_max: float

    @classmethod
    def read(cls, file: Path = OBJECTIVES) -> Self:
        """As the file has them. LoadError for one that is none."""
        try:
            content = json.loads(file.read_text())
            lists = {name: tuple(content[name]) for name in ("serving", "reported_apart")}
            return cls(**{**content, **lists})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise LoadError(f"{file} holds no objectives as {OBJECTIVES.name} does: {error!r}") from error


@dataclass(frozen=True)
class Stage:
    """`share` of the run at `times` its rate."""

    share: float
    times: float


@dataclass(frozen=True)
class Scenario:
    """`deck` holds the steps of the journeys that are made in turn; `seconds` is how long it runs if not told."""

    name: str
    deck: tuple[tuple[str, ...], ...]
    stages: tuple[Stage, ...]
    seconds: float | None

    @property
    def requests_per_journey(self) -> float:
        """On average."""
        return sum(map(len, self.deck)) / len(self.deck)

    @property
    def operations(self) -> list[str]:
        """What is asked, in order of first use."""
        return list(dict.fromkeys(step for steps in self.deck for step in steps))

    def times(self, share: float) -> float:
        """How many times its rate it runs at once this share of it has passed; 0 at its end."""
        if share >= 1:
            return 0.0
        for stage in self.stages:
            if share < stage.share:
                return stage.times
            share -= stage.share
        return self.stages[-1].times  # all shares are one but for a rounding

    def journeys(self, rate: float, seconds: float) -> float:
        """How many begin at so many requests a second."""
        return sum(stage.share * stage.times for stage in self.stages) * seconds * rate / self.requests_per_journey

    def users(self, rate: float) -> int:
        """How many are enough for journeys of JOURNEY_SECONDS_MAX to begin when they are due."""
        return max(2, round(JOURNEY_SECONDS_MAX * rate / self.requests_per_journey))


def names() -> list[str]:
    """Of all scenarios."""
    return list(_described()["scenarios"])


def read(name: str, *, reports: bool = True) -> Scenario:
    """The scenario of that name; without its reports when the stack has none to give. KeyError."""
    described = _described()
    found = described["scenarios"][name]
    left_out = () if reports else (REPORT,)
    return Scenario(
        name,
        tuple(
            tuple(step for step in described["journeys"][journey] if step not in left_out)
            for journey in found["journeys"]
        ),
        tuple(Stage(**stage) for stage in found.get("stages", [{"share": 1, "times": 1}])),
        found.get("seconds"),
    )


def _described() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = json.loads(_SCENARIOS.read_text())
    return content
