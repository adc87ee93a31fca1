"""Quantiles of the difference of two histograms, and what is made of them."""

from math import inf

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loadtests.load import scrape
from loadtests.load.database import Counts, Work
from loadtests.load.evidence import Evidence, Figures, Reading
from loadtests.load.scenario import Objectives
from loadtests.load.scrape import Histogram, Quantile

BOUNDS = (0.01, 0.02, 0.05, inf)
ORDERS, MAINTENANCE = ("orders-api", "get_events"), ("orders-maintenance", "refresh_summaries")
SHOWN = """
# TYPE db_query_seconds histogram
db_query_seconds_bucket{statement="get_events",le="0.01"} 3.0
db_query_seconds_bucket{statement="get_events",le="0.1"} 4.0
db_query_seconds_bucket{statement="get_events",le="+Inf"} 5.0
db_query_seconds_count{statement="get_events"} 5.0
db_query_seconds_sum{statement="get_events"} 0.7
# TYPE other_seconds histogram
other_seconds_bucket{statement="get_events",le="+Inf"} 9.0
other_seconds_count{statement="get_events"} 9.0
other_seconds_sum{statement="get_events"} 9.0
"""


def histogram(*cumulative: float, seconds: float = 1.0) -> Histogram:
    return Histogram(BOUNDS, list(cumulative), seconds)


@pytest.mark.parametrize(
    ("cumulative", "share", "expected"),
    [
        ((100, 100, 100, 100), 0.5, (5.0, 0.0, 10.0)),  # the first bucket begins at 0
        ((0, 100, 100, 100), 0.5, (15.0, 10.0, 20.0)),
        ((0, 100, 100, 100), 0.99, (19.9, 10.0, 20.0)),
        ((90, 98, 100, 100), 0.99, (35.0, 20.0, 50.0)),
        ((98, 99, 100, 100), 0.99, (20.0, 10.0, 20.0)),  # what is at most a bound is in its bucket
        ((0, 0, 0, 7), 0.5, (50.0, 50.0, inf)),  # beyond the last bound nothing is known but that
        ((90, 90, 90, 100), 0.5, (1000 * 0.01 * 50 / 90, 0.0, 10.0)),
    ],
)
def test_a_quantile_is_interpolated_in_its_bucket_as_prometheus_does(
    cumulative: tuple[float, ...], share: float, expected: tuple[float, float, float]
) -> None:
    found = histogram(*cumulative).quantile(share)
    assert found == pytest.approx(Quantile(*expected))


def test_histograms_are_read_by_statement_from_what_a_process_shows() -> None:
    samples = [sample for family in text_string_to_metric_families(SHOWN) for sample in family.samples]
    assert scrape.histograms(samples) == {"get_events": Histogram([0.01, 0.1, inf], [3, 4, 5], 0.7)}


def test_only_what_was_called_in_between_counts() -> None:
    before = {ORDERS: histogram(5, 5, 5, 5, seconds=2.0), MAINTENANCE: histogram(0, 0, 0, 1)}
    after = {
        ORDERS: histogram(5, 7, 9, 9, seconds=2.25),
        MAINTENANCE: before[MAINTENANCE],
        ("x", "y"): histogram(1, 1, 1, 1),
    }
    found = scrape.since(before, after)
    assert found == {ORDERS: histogram(0, 2, 4, 4, seconds=0.25), ("x", "y"): histogram(1, 1, 1, 1)}
    assert (found[ORDERS].calls, found[ORDERS].mean_ms) == (4, 62.5)


@pytest.mark.parametrize("after", [{}, {ORDERS: histogram(1, 1, 1, 1)}])
def test_a_process_that_has_started_anew_is_told_and_counts_from_there(after: scrape.Statements) -> None:
    before = {ORDERS: histogram(5, 5, 5, 5)}
    assert scrape.since(before, after) == after
    found = Evidence.between(reading(1.0, before, None), reading(2.0, after, None))
    assert found.missed(Objectives.read()) == ["orders-api has started anew"]


def reading(
    at: float, statements: scrape.Statements, work: dict[tuple[str, str], Work] | None, *months: str
) -> Reading:
    return Reading(at, statements, Counts(work, {"checkpoints": int(at)}, frozenset(months)))


def test_evidence_is_the_difference_of_two_readings() -> None:
    done = {ORDERS: Work(4, 2.0, 40, 4, 100)}
    found = Evidence.between(
        reading(10.0, {ORDERS: histogram(4, 4, 4, 4)}, done, "2026_11"),
        reading(
            12.0,
            {ORDERS: histogram(14, 14, 14, 14, seconds=1.05), MAINTENANCE: histogram(0, 0, 0, 3)},
            {ORDERS: Work(14, 7.0, 90, 14, 1100)},
            *("2026_11", "2026_12"),
        ),
    ).content()
    assert found["upkeep"] == {"checkpoints": 2, "summary_refreshes": 3, "months_made": ["2026_12"]}
    assert found["window_seconds"] == 2.0
    first, second = found["statements"]
    assert (first["statement"], first["calls"], first["mean_ms"]) == ("get_events", 10, 5.0)
    assert first["p99_between_ms"] == [0.0, 10.0]
    assert first["postgresql"] == {
        **{"calls": 10, "mean_exec_ms": 0.5, "blocks_hit": 5.0, "blocks_read": 1.0, "wal_bytes": 100}
    }
    assert "postgresql" not in second


@pytest.mark.parametrize(
    ("process", "cumulative", "missed"),
    [
        ("orders-api", (0, 100, 100, 100), False),
        ("orders-api", (0, 98, 100, 100), True),
        ("orders-api", (0, 0, 0, 99), False),  # too few for a p99
        ("orders-api", (0, 0, 0, 100), True),
        ("orders-maintenance", (0, 0, 0, 100), False),  # nobody waits for it
    ],
)
def test_a_statement_that_clients_wait_for_has_to_be_below_20_ms_in_99_of_100_calls(
    process: str, cumulative: tuple[float, ...], missed: bool
) -> None:
    found = Evidence(1.0, [Figures(process, "get_events", histogram(*cumulative), None)], {}, [])
    assert len(found.missed(Objectives.read())) == missed
