"""What a generator has measured, request by request, from its raw file. Standard library only: Locust uses it."""

import csv
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loadtests.load.scenario import Objectives

COLUMNS: Final = ("at", "name", "status", "response_ms", "db_ms", "order_id")
_DATABASE: Final = re.compile(r"(?:^|,)\s*db\s*;\s*dur=([0-9.]+)")


@dataclass
class Samples:
    """By operation, in milliseconds and as they came, of what was answered after the warm-up.

    `requests`, `all_db_ms` and `order_ids` (those acknowledged with 201) are of the warm-up too.
    """

    requests: int = 0

    response_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    db_ms: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    all_db_ms: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    order_ids: list[str] = field(default_factory=list)

    @property
    def responses(self) -> list[float]:
        """Of all operations."""
        return [one for found in self.response_ms.values() for one in found]

    def add_db(self, name: str, milliseconds: float, *, warm: bool) -> None:
        """An answer that says its time in the database."""
        self.all_db_ms[name] += milliseconds
        if warm:
            self.db_ms[name].append(milliseconds)


def database_ms(server_timing: str | None) -> float | None:
    """Milliseconds in statements, as the header Server-Timing says (W3C Server Timing); None when it does not."""
    found = _DATABASE.search(server_timing or "")
    return float(found[1]) if found else None


def quantile(values: Sequence[float], share: float) -> float:
    """Between the two nearest, in proportion, as k6 has it. ValueError for none at all."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    below = int(place := share * (len(ordered) - 1))
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def median_and_spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return statistics.median(values), min(values), max(values)


def missed(samples: Samples, objectives: Objectives, *, dropped: int, failed: int) -> list[str]:
    """Each objective that does not hold, and what was found instead."""
    found = []
    for what, measured, limit in (
        ("response", samples.response_ms, objectives.response_ms_p99_below),
        ("database", samples.db_ms, objectives.db_ms_p99_below),
    ):
        for name, values in measured.items():
            if name not in objectives.reported_apart and not (p99 := quantile(values, 0.99)) < limit:
                found.append(f"{name}: p99 of {what} {p99:.1f} ms, not below {limit:g}")
    if dropped > objectives.dropped_max:
        found.append(f"{dropped} journeys dropped, not at most {objectives.dropped_max}")
    if failed > objectives.failed_max:
        found.append(f"{failed} requests failed, not at most {objectives.failed_max}")
    return found


def of_locust(rows: Iterable[Mapping[str, str]], *, warm_at: float) -> Samples:
    """From rows of COLUMNS; what was asked before `warm_at` (seconds since the start) was warm-up."""
    samples = Samples()
    for row in rows:
        name, warm = row["name"], float(row["at"]) >= warm_at
        samples.requests += 1
        if warm:
            samples.response_ms[name].append(float(row["response_ms"]))
        if row["db_ms"]:
            samples.add_db(name, float(row["db_ms"]), warm=warm)
        if row["order_id"]:
            samples.order_ids.append(row["order_id"])
    return samples


def of_k6(rows: Iterable[Mapping[str, str]]) -> Samples:
    """From rows of k6's CSV output: one for each metric of a request, the operation as `name`."""
    samples = Samples()
    for row in rows:
        metric, warm = row["metric_name"], row["scenario"] != "warmup"
        if metric == "http_req_duration":
            samples.requests += 1
            if warm:
                samples.response_ms[row["name"]].append(float(row["metric_value"]))
        elif metric == "db_ms":
            samples.add_db(row["name"], float(row["metric_value"]), warm=warm)
        elif metric == "acknowledged":
            samples.order_ids.append(dict(pair.split("=", 1) for pair in row["metadata"].split("&"))["order_id"])
    return samples


def rows(file: Path) -> Iterable[dict[str, str]]:
    """Of a CSV file with a line of names."""
    with file.open(newline="") as stream:
        yield from csv.DictReader(stream)
