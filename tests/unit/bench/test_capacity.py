"""docs/capacity.md and what it is reckoned with."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import orjson
import pytest

from loadtests.bench.capacity import DOCUMENT, KEPT, main
from loadtests.bench.capacity_model import LIMITS, Parameters, reached, reckoned
from loadtests.bench.capacity_tables import document
from services.cli.marked import replaced


@pytest.fixture(scope="module")
def measured() -> Mapping[str, Any]:
    found: Mapping[str, Any] = orjson.loads(KEPT.read_bytes())
    return found


def test_the_document_says_what_the_kept_figures_say(measured: Mapping[str, Any]) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for mark, part in document(measured).items():
        assert text == replaced(text, mark, part)


def test_figures_of_a_quick_run_are_not_kept(measured: Mapping[str, Any]) -> None:
    assert measured["quick"] is False


def test_a_limit_is_reached_where_it_is_said_to_be(measured: Mapping[str, Any]) -> None:
    shop = Parameters(spare=0, others=0)
    at = reached(measured, shop)
    needs = reckoned(measured, replace(shop, orders_per_year=at["commits"]))
    assert needs["commits"] == pytest.approx(shop.server_syncs)
    assert {limit.need for limit in LIMITS} <= needs.keys()


def test_what_was_too_little_to_measure_is_never_full(measured: Mapping[str, Any]) -> None:
    nothing = {**measured, "summaries": {**measured["summaries"], "us": 0.0}}
    assert inf in reached(nothing, Parameters()).values()
    assert "inf" in document(nothing)["capacity: limits"]


def test_the_average_is_the_peak_without_its_factor(measured: Mapping[str, Any]) -> None:
    average, peak = (reckoned(measured, Parameters(orders_per_year=31_536_000, peak=peak)) for peak in (1, 20))
    assert average["orders"] == 1
    assert peak["wal_mb"] == pytest.approx(20 * average["wal_mb"])
    assert peak["disk_gb"] == average["disk_gb"]


def test_an_order_of_more_lines_takes_their_rows_more(measured: Mapping[str, Any]) -> None:
    one, three = (reckoned(measured, Parameters(lines=lines)) for lines in (1, 3))
    row = measured["tables"]["orders.order_items"]["heap"], measured["tables_paid"]["orders.order_items"]["heap"]
    toast = measured["tables"]["orders.order_items"]["toast"], measured["tables_paid"]["orders.order_items"]["toast"]
    both = [(heap + rest) / measured["lines"] for heap, rest in zip(row, toast, strict=True)]
    assert three["tables_gb"] - one["tables_gb"] == pytest.approx(2 * 10e6 * (0.2 * both[0] + 0.8 * both[1]) / 1e9)


@pytest.mark.parametrize(
    "wrong", [["--utilisation", "0"], ["--hits", "1.2"], ["--peak", "0"], ["--reads", "-1"], ["--reads", "many"]]
)
def test_a_shop_that_cannot_be_is_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--orders-per-year", "1e6", *wrong])
    assert ended.value.code == 2
    assert wrong[0].strip("-") in capsys.readouterr().err


def test_a_reader_puts_in_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--orders-per-year", "25000000", "--peak", "30", "--reads", "0"]) == 0
    told = capsys.readouterr().out
    assert "| need | 25 M, average | 25 M, peak 30x |" in told
    assert "| orders placed (`orders`, 1/s) | 0.8 | 23.8 |" in told
