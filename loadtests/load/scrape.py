"""What the processes of a stack count of themselves, as their /metrics say (Prometheus text format)."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from loadtests.load.scenario import LoadError
from loadtests.load.shop import Shop

_STATEMENTS: Final = "db_query_seconds"


class Quantile(NamedTuple):
    """A quantile in milliseconds, and the bounds of the bucket it was interpolated in: it lies between them."""

    ms: float
    above_ms: float
    at_most_ms: float


@dataclass(frozen=True)
class Histogram:
    """Calls that took at most so many seconds, by the buckets' upper bounds, the last of which is infinity."""

    bounds: Sequence[float]
    cumulative: Sequence[float]
    seconds: float

    @property
    def calls(self) -> int:
        """All."""
        return int(self.cumulative[-1])

    @property
    def mean_ms(self) -> float:
        """Of at least one call."""
        return self.seconds / self.calls * 1000

    def since(self, before: "Histogram") -> "Histogram":
        """What has come since. All of it when there is less than before: the process has started anew."""
        if self.cumulative[-1] < before.cumulative[-1]:
            return self
        found = [after - earlier for after, earlier in zip(self.cumulative, before.cumulative, strict=True)]
        return Histogram(self.bounds, found, self.seconds - before.seconds)

    def quantile(self, share: float) -> Quantile:
        """Of at least one call. Interpolated as Prometheus does: evenly in the bucket; of the last, its lower bound.

        Prometheus documentation, "Query functions", histogram_quantile (classic histograms).
        """
        rank = share * self.cumulative[-1]
        place = bisect_left(self.cumulative, rank)
        low = self.bounds[place - 1] if place else 0.0
        high = self.bounds[place]
        if high == inf:
            return Quantile(low * 1000, low * 1000, inf)
        below = self.cumulative[place - 1] if place else 0.0
        found = low + (high - low) * (rank - below) / (self.cumulative[place] - below)
        return Quantile(found * 1000, low * 1000, high * 1000)


Statements = Mapping[tuple[str, str], Histogram]  # by process and statement


async def samples(shop: Shop, process: str) -> list[Sample]:
    """All of a process. LoadError when the stack does not say where they are, or it does not answer."""
    if process not in shop.endpoints["metrics"]:
        raise LoadError(f"The stack does not say where {process} has its metrics.")
    try:
        async with httpx.AsyncClient() as client:
            text = (await client.get(shop.endpoints["metrics"][process])).raise_for_status().text
    except httpx.HTTPError as error:
        raise LoadError(f"{process} does not show its metrics: {error!r}") from error
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def statements(shop: Shop) -> dict[tuple[str, str], Histogram]:
    """Of every process of the stack that has metrics. LoadError as `samples`."""
    return {
        (process, name): histogram
        for process in shop.endpoints["metrics"]
        for name, histogram in histograms(await samples(shop, process)).items()
    }


def histograms(found: Iterable[Sample]) -> dict[str, Histogram]:
    """Of statements that were called, by their names."""
    buckets: dict[str, list[tuple[float, float]]] = defaultdict(list)
    seconds: dict[str, float] = {}
    for sample in found:
        if sample.name == f"{_STATEMENTS}_bucket":
            buckets[sample.labels["statement"]].append((float(sample.labels["le"]), sample.value))
        elif sample.name == f"{_STATEMENTS}_sum":
            seconds[sample.labels["statement"]] = sample.value
    made = {}
    for name, pairs in buckets.items():
        pairs.sort()
        made[name] = Histogram([bound for bound, _ in pairs], [count for _, count in pairs], seconds[name])
    return made


def since(before: Statements, after: Statements) -> dict[tuple[str, str], Histogram]:
    """Of what was called in between."""
    nothing = {key: Histogram(found.bounds, [0.0] * len(found.bounds), 0.0) for key, found in after.items()}
    differences = {key: found.since(before.get(key, nothing[key])) for key, found in after.items()}
    return {key: found for key, found in differences.items() if found.calls}


def restarted(before: Statements, after: Statements) -> list[str]:
    """Processes that have forgotten what they had counted, as they have started anew in between."""
    return sorted({key[0] for key, found in before.items() if key not in after or after[key].calls < found.calls})
