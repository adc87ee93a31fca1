"""What decides whether a run is void, missed its objectives, or agrees with the other."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtests.load import report
from loadtests.load.__main__ import _generators, main
from loadtests.load.accounting import Account
from loadtests.load.agreement import Compared, Metrics, compared_database
from loadtests.load.evidence import Evidence
from loadtests.load.generators import Load, Measured
from loadtests.load.run import Run, knee_told, verdict
from loadtests.load.samples import Samples, database_ms, missed, of_k6, of_locust, quantile
from loadtests.load.scenario import OBJECTIVES, LoadError, Objectives

PLACED = ["a", "b", "c"]
NOTHING = Evidence(10.0, [], {}, [])
GOOD = Account(counted=3, acknowledged=PLACED, rows=PLACED, events=PLACED)


def measured_of(response_ms: Mapping[str, Sequence[float]], db_ms: Mapping[str, Sequence[float]]) -> Samples:
    samples = Samples()
    samples.response_ms |= {name: list(values) for name, values in response_ms.items()}
    samples.db_ms |= {name: list(values) for name, values in db_ms.items()}
    return samples


def run_of(generator: str, p50: float, *, account: Account = GOOD, **members: Any) -> Run:
    samples = measured_of({"get_order": [p50] * 100}, {"get_order": [0.5] * 100})
    measured = Measured(samples, 3, 0, 0, [], seconds=10.0, cpu_seconds=1.0)
    return replace(Run(generator, 1, 20.0, measured, account, [], 0.5, NOTHING, Objectives.read()), **members)


@pytest.mark.parametrize(
    ("header", "milliseconds"),
    [
        ("db;dur=1.250, pool;dur=0.000", 1.25),
        ("pool;dur=3.000, db;dur=0.042", 0.042),
        ("db;dur=12", 12.0),
        ("cache;desc=hit,db ; dur=7.5", 7.5),
        ("mydb;dur=9.000", None),
        ("pool;dur=3.000", None),
        ("", None),
        (None, None),
    ],
)
def test_the_time_in_the_database_is_read_from_server_timing(header: str | None, milliseconds: float | None) -> None:
    assert database_ms(header) == milliseconds


def test_a_quantile_lies_between_the_two_nearest_values() -> None:
    assert quantile([3.0], 0.99) == 3.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile(list(range(101)), 0.99) == 99
    with pytest.raises(ValueError, match="nothing"):
        quantile([], 0.5)


def test_samples_of_k6_are_told_from_its_rows_by_scenario_and_metric() -> None:
    def row(metric: str, value: float, name: str, scenario: str, metadata: str = "") -> dict[str, str]:
        cells = {"metric_name": metric, "metric_value": str(value), "name": name, "scenario": scenario}
        return cells | {"metadata": metadata}

    found = of_k6(
        [
            row("http_req_duration", 9.0, "place_order", "warmup"),
            row("db_ms", 4.0, "place_order", "warmup"),
            row("acknowledged", 1, "", "warmup", "order_id=a"),
            row("http_req_duration", 5.0, "place_order", "mixed"),
            row("http_req_waiting", 4.5, "place_order", "mixed"),
            row("db_ms", 2.0, "place_order", "mixed"),
            row("acknowledged", 1, "", "mixed", "order_id=b"),
        ]
    )
    assert (found.response_ms, found.db_ms) == ({"place_order": [5.0]}, {"place_order": [2.0]})
    assert (found.requests, found.all_db_ms, found.order_ids) == (2, {"place_order": 6.0}, ["a", "b"])


def test_samples_of_locust_before_the_warm_up_has_ended_count_for_the_books_alone() -> None:
    row = {"name": "place_order", "status": "201", "response_ms": "5.0", "db_ms": "2.0", "order_id": "a"}
    failed = row | {"at": "11", "status": "0", "db_ms": "", "order_id": ""}
    found = of_locust([row | {"at": "9.9"}, row | {"at": "10.1", "order_id": "b"}, failed], warm_at=10.0)
    assert (found.response_ms, found.db_ms) == ({"place_order": [5.0, 5.0]}, {"place_order": [2.0]})
    assert (found.requests, found.all_db_ms, found.order_ids) == (3, {"place_order": 4.0}, ["a", "b"])


def test_each_missed_objective_is_told_by_operation() -> None:
    objectives, slow = Objectives.read(), [1.0] * 90 + [250.0] * 10
    samples = measured_of({"get_order": slow, "list_orders": [1.0]}, {"get_order": [0.1], "list_orders": [20.0]})
    assert missed(samples, objectives, dropped=0, failed=0) == [
        "get_order: p99 of response 250.0 ms, not below 200",
        "list_orders: p99 of database 20.0 ms, not below 20",
    ]
    met = measured_of({"get_order": [199.9]}, {"get_order": [19.9]})
    assert missed(met, objectives, dropped=0, failed=0) == []
    assert missed(met, objectives, dropped=1, failed=2) == [
        "1 journeys dropped, not at most 0",
        "2 requests failed, not at most 0",
    ]


def test_waits_for_one_product_are_reported_apart() -> None:
    samples = measured_of({"place_of_one_product": [900.0]}, {"place_of_one_product": [890.0]})
    assert missed(samples, Objectives.read(), dropped=0, failed=0) == []


@pytest.mark.parametrize(
    "account",
    [
        replace(GOOD, counted=2),
        replace(GOOD, acknowledged=["a", "b"], counted=2),
        replace(GOOD, acknowledged=["a", "b", "b"]),
        replace(GOOD, rows=["a", "b"]),
        replace(GOOD, rows=[*PLACED, "d"]),
        replace(GOOD, rows=["a", "b"], events=["a", "b"]),
        replace(GOOD, events=["a", "b"]),
        replace(GOOD, events=[*PLACED, "d"]),
        replace(GOOD, units=4, sold=4, ordered=3),
        replace(GOOD, units=4, sold=3, ordered=3),
        replace(GOOD, units=3, sold=2, ordered=3),
        replace(GOOD, units=2, sold=3, ordered=3),
    ],
)
def test_a_run_whose_books_do_not_agree_is_void(account: Account) -> None:
    assert account.mismatches()
    (line, *_) = verdict([run_of("k6", 2.0, account=account)])
    assert line.startswith("k6 1 is VOID: ")


def test_a_run_whose_books_agree_counts() -> None:
    assert GOOD.mismatches() == []
    assert replace(GOOD, units=3, sold=3, ordered=3).mismatches() == []
    assert verdict([run_of("k6", 2.0), run_of("locust", 2.0)]) == []


def test_a_void_run_is_compared_with_nobody() -> None:
    void = run_of("locust", 9.0, account=replace(GOOD, rows=["a"]))
    assert all("VOID" in line for line in verdict([run_of("k6", 2.0), void]))


def test_a_run_in_which_nothing_was_measured_is_void() -> None:
    empty = replace(run_of("k6", 1.0).measured, samples=Samples())
    assert verdict([run_of("k6", 1.0, measured=empty)]) == ["k6 1 is VOID: nothing was measured"]


def test_generators_whose_p50_differ_by_more_than_a_fifth_do_not_agree() -> None:
    assert verdict([run_of("k6", 2.0), run_of("locust", 2.5)]) == []
    (line,) = verdict([run_of("k6", 2.0), run_of("locust", 2.51)])
    assert line.startswith("p50 of k6 and locust, ms: 2.000 and 2.510 differ by 20%")


def test_what_a_generator_missed_fails_the_run() -> None:
    late = replace(run_of("k6", 2.0).measured, missed=["dropped_iterations: count<=0 does not hold (count 3)"])
    assert verdict([run_of("k6", 2.0, measured=late)]) == ["k6 1: dropped_iterations: count<=0 does not hold (count 3)"]


def test_histograms_are_compared_by_statement_with_all_operations_that_use_it() -> None:
    before, after = Metrics({"get_events": 1.0}, 0.0), Metrics({"get_events": 2.0, "place_order": 0.5}, 1.0)
    told = {"get_order": 600.0, "get_order_events": 350.0, "place_order": 400.0, "list_orders": 0.0}
    events, placing = compared_database(before, after, told, 0.1)
    assert (events.one, round(events.other, 6), events.agrees) == (1.0, 0.95, True)
    assert (placing.one, round(placing.other, 6), placing.agrees) == (0.5, 0.4, False)
    assert "db_query_seconds{statement=place_order}" in verdict([run_of("k6", 2.0, database=[placing])])[0]


def test_time_that_no_answer_told_of_is_a_difference() -> None:
    (found,) = compared_database(Metrics({}, 0.0), Metrics({"list_orders": 3.0}, 0.0), {"list_orders": 0.0}, 0.1)
    assert not found.agrees
    assert Compared("nothing at all", 0.0, 0.0, 0.1).agrees


def test_the_knee_is_the_last_rate_that_holds() -> None:
    steps = [run_of("k6", 2.0, number=number, rate=rate) for number, rate in enumerate((100.0, 200.0), 1)]
    assert knee_told(steps) == "The knee is above 200 requests/s: every objective holds there."
    late = replace(steps[1], evidence=replace(NOTHING, troubles=["orders-api has started anew"]))
    assert not late.holds
    told = knee_told([steps[0], late])
    assert told.startswith("The knee is at 100 requests/s: at 200 requests/s not every objective holds (k6 2: orders-")
    busy = replace(steps[0], measured=replace(steps[0].measured, cpu_seconds=9.0))
    assert knee_told([busy]).startswith("There is no knee: at 100 requests/s not every objective holds (k6 1 was busy")


@pytest.mark.parametrize("rates", ["200,100", "100,100", "0,100", "100,", "many", "100,6000"])
def test_steps_have_to_rise_within_bounds(rates: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--steps", rates])
    assert "--steps" in capsys.readouterr().err


def test_a_file_that_is_no_result_makes_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "result.json").write_text('{"runs": []}')
    assert main(["--table", str(tmp_path / "result.json")]) == 2
    assert "holds no result of a run" in capsys.readouterr().out.replace("\n", " ")


def test_a_busy_generator_gives_processor_time_instead_of_a_rate() -> None:
    load = Load("mixed", 100.0, 10.0, 0.0, OBJECTIVES)
    busy = replace(run_of("k6", 2.0).measured, cpu_seconds=8.1)
    for run, rated in ((run_of("k6", 2.0), True), (run_of("k6", 2.0, measured=busy), False)):
        (told,) = report.content([run], load, [], [])["runs"]
        assert ("requests_per_second" in told) is rated
        assert told["server_cpu_ms_per_request"] > 0
        assert told["generator_cores"] == pytest.approx(run.measured.cores)


def test_several_runs_give_median_and_spread() -> None:
    runs = [run_of("k6", p50, number=number) for number, p50 in enumerate([3.0, 1.0, 2.0], 1)]
    content = report.content(runs, Load("mixed", 1.0, 1.0, 0.0, OBJECTIVES), [], [])
    found = content["median_and_spread"]["k6"]["response_ms_p50"]
    assert found == {"median": 2.0, "least": 1.0, "most": 3.0}


def test_without_k6_locust_runs_alone_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("K6", str(tmp_path / "missing"))
    monkeypatch.setenv("LOCUST", __file__)
    notes: list[str] = []
    assert [one.name for one in _generators(None, notes)] == ["locust"]
    (note,) = notes
    assert "k6 is not here: `make tools` builds it" in note
    assert "locust ran alone" in note
    with pytest.raises(LoadError, match="make tools"):
        _generators("k6", [])


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "5001", "many"])
def test_a_load_without_bounds_is_refused(rate: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--rate", rate])
    assert ended.value.code == 2
    assert "--rate" in capsys.readouterr().err


def test_objectives_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "objectives.json"
    for content in ("{}", "no json", '{"reported_apart": [], "unknown": 1}'):
        file.write_text(content)
        with pytest.raises(LoadError, match=r"holds no objectives"):
            Objectives.read(file)
