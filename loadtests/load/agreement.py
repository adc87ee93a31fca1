"""Whether two who have measured the same agree: k6 with Locust, and Server-Timing with the processes' histograms."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from loadtests.load import scrape
from loadtests.load.shop import Shop

PROCESSES: Final = ("orders-api", "catalog-api")
# The statement of each operation, by its label in db_query_seconds.
STATEMENTS: Final = {
    "list_products": "list_products_newest",
    "search_products": "search_products",
    "get_product": "get_product",
    "get_inventory": "get_inventory",
    "place_order": "place_order",
    "place_of_one_product": "place_order",
    "get_order": "get_events",
    "get_order_events": "get_events",
    "list_orders": "list_orders",
    "list_summaries": "list_summaries",
    "get_sales": "report_by_day",
}


@dataclass(frozen=True)
class Metrics:
    """Of the processes that answer: seconds by statement, and of the processor."""

    statement_seconds: Mapping[str, float]
    cpu_seconds: float


@dataclass(frozen=True)
class Compared:
    """Two values of the same, and by which share of the larger they may differ."""

    what: str
    one: float
    other: float
    share_max: float

    @property
    def differs_by(self) -> float:
        """A share of the larger."""
        larger = max(self.one, self.other)
        return abs(self.one - self.other) / larger if larger else 0.0

    @property
    def agrees(self) -> bool:
        """Whether they are close enough."""
        return self.differs_by <= self.share_max


async def scraped(shop: Shop) -> Metrics:
    """As they stand now. LoadError when a process has none to show."""
    statements: dict[str, float] = defaultdict(float)
    cpu_seconds = 0.0
    for process in PROCESSES:
        for sample in await scrape.samples(shop, process):
            if sample.name == "db_query_seconds_sum":
                statements[sample.labels["statement"]] += sample.value
            elif sample.name == "process_cpu_seconds_total":
                cpu_seconds += sample.value
    return Metrics(statements, cpu_seconds)


def compared_database(
    before: Metrics, after: Metrics, told_ms: Mapping[str, float], share_max: float
) -> list[Compared]:
    """Seconds of each statement by the histograms, and by what the answers to the operations that use it told."""
    told: dict[str, float] = defaultdict(float)
    for operation, milliseconds in told_ms.items():
        told[STATEMENTS[operation]] += milliseconds / 1000
    compared = [
        Compared(
            f"db_query_seconds{{statement={statement}}}",
            after.statement_seconds.get(statement, 0.0) - before.statement_seconds.get(statement, 0.0),
            seconds,
            share_max,
        )
        for statement, seconds in told.items()
    ]
    return [one for one in compared if one.one or one.other]  # what a cache has spared is not told
