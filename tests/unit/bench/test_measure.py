import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import pgbench, results
from loadtests.bench.machine import cpu_of
from loadtests.bench.measure import PERCENTILES, Comparison, Plan, Result, Side, VoidError, Work, alternate, summary
from services.orders.place import PLACE

LATENCIES = tuple(float(n) for n in range(1, len(PERCENTILES) + 1))


class Turns:
    """Sides that count what a script says, one number a turn, and remember who was asked when for how long."""

    def __init__(self, **counts: list[int]) -> None:
        self.asked: list[tuple[str, float]] = []
        self._counts = {name: iter(each) for name, each in counts.items()}
        self._cpu = dict.fromkeys(counts, 0.0)
        self.postgres = 0.0

    def side(self, name: str) -> Side:
        async def run(seconds: float) -> Work:
            self.asked.append((name, seconds))
            self._cpu[name] += 0.001
            self.postgres += 0.002
            return Work(next(self._counts[name]), 1.0, LATENCIES)

        return Side(name, run, lambda: self._cpu[name])

    async def result(self, plan: Plan) -> Result:
        sides = [self.side(name) for name in self._counts]
        return await alternate(Comparison("row", "things", sides), plan, lambda: self.postgres)


async def test_sides_alternate_there_and_back_after_each_was_warmed_up() -> None:
    turns = Turns(a=[1] * 5, b=[1] * 5)
    await turns.result(Plan(rounds=2, seconds=5, warm_seconds=2, quick=False))
    assert turns.asked[:2] == [("a", 2), ("b", 2)]
    assert turns.asked[2:] == [(name, 5) for name in "abba" * 2]


async def test_the_ratio_is_the_median_of_the_rounds_with_the_least_and_the_most() -> None:
    turns = Turns(a=[10, 30, 10, 10, 60, 60], b=[10, 30, 40, 40, 20, 20])
    result = await turns.result(Plan(rounds=3, seconds=1, warm_seconds=0, quick=False))
    ratio = result.ratio("b")  # 20/20, 10/40, 60/20
    assert (ratio.median, ratio.least, ratio.most) == (1.0, 0.25, 3.0)
    assert "ours to it 1.000 (0.250..3.000)" in summary(result)[1]


async def test_cpu_is_told_for_each_operation_of_the_process_and_of_postgresql_apart() -> None:
    result = await Turns(a=[10], b=[20]).result(Plan(rounds=1, seconds=1, warm_seconds=0, quick=True))
    assert result.cpu_us("a") == pytest.approx((100, 200))
    assert result.cpu_us("b") == pytest.approx((50, 100))


async def test_a_side_that_does_nothing_voids_the_run() -> None:
    with pytest.raises(VoidError, match="b has done nothing"):
        await Turns(a=[1], b=[0]).result(Plan(rounds=1, seconds=1, warm_seconds=0, quick=True))


async def test_facts_are_given_the_turns_and_kept() -> None:
    async def facts(turns: Any) -> dict[str, Any]:
        return {"counted": sum(turn.count for turn in turns)}

    turns = Turns(a=[3], b=[4])
    comparison = Comparison("row", "things", [turns.side("a"), turns.side("b")], facts)
    result = await alternate(comparison, Plan(1, 1, 0, quick=True), lambda: 0.0)
    assert result.facts == {"counted": 7}


FACTS = {
    "commit": "abc",
    "cores": 2,
    "cpu": "a chip",
    "memory_bytes": 4 * 2**30,
    "postgresql": {"server_version": "18"},
    "fsyncs_per_second": 1e4,
}


async def test_what_is_kept_is_read_back_and_stands_in_the_table(tmp_path: Path) -> None:
    result = await Turns(ours=[50, 50], limit=[100, 100]).result(Plan(1, 1, 0, quick=False))
    results.keep(tmp_path, FACTS, Plan(1, 1, 0, quick=False), result)
    assert [read for _, read in results.read(tmp_path)] == [result]
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".svg"}
    document = tmp_path / "performance.md"
    document.write_text("before\n<!-- orders bench --table -->\nold\n<!-- end: orders bench --table -->\nafter\n")
    assert results.write_table(tmp_path, document) == 1
    text = document.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "- abc, 2 cores of a chip, 4 GiB, PostgreSQL 18, 10,000 syncs a second; 1 rounds, turns of 1 s\n" in text
    assert "|  | limit | 100 | 10 us, 20 us | 9.0 ms | 0.50 (0.50..0.50) |\n" in text


async def test_quick_results_stand_in_no_table(tmp_path: Path) -> None:
    plan = Plan(1, 1, 0, quick=True)
    results.keep(tmp_path, FACTS, plan, await Turns(ours=[1], limit=[1]).result(plan))
    with pytest.raises(ValueError, match="no result"):
        results.write_table(tmp_path, tmp_path / "none.md")


async def test_the_plot_over_sizes_has_every_statement(tmp_path: Path) -> None:
    turns = Turns(**{"200 orders": [1], "100 orders": [1]})
    sides = [turns.side("200 orders"), turns.side("100 orders")]
    found = await alternate(Comparison("flatness get", "statements", sides), Plan(1, 1, 0, quick=True), lambda: 0.0)
    results.keep_flatness(tmp_path, [found])
    assert ">get<" in (tmp_path / "flatness.svg").read_text()


def test_cpu_of_a_process_has_that_of_children_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    child = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print('done', flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        assert cpu_of(process.pid)() >= 0.2
        process.communicate(os.linesep.encode())


def test_a_script_has_the_statement_with_expressions_for_its_parameters_and_no_other_variables() -> None:
    names = [name for name in _parameters() if name != "key"]
    text = pgbench.script(PLACE, {**pgbench.variables(names), "key": "'a' || :n"}, [r"\set n 1"])
    assert text.startswith("\\set n 1\n")
    assert text.endswith(";\n")
    assert "$" not in text
    assert "(:shard)::SMALLINT" in text
    assert "('a' || :n)" in text
    assert r"E'orders\x3ainventory'" in text
    assert "orders:inventory" not in text


def _parameters() -> list[str]:
    """The names that the statement binds, by asking for them."""
    asked: list[str] = []

    class Asking(dict[str, object]):
        def __missing__(self, name: str) -> str:
            asked.append(name)
            return ""

    PLACE.arguments(Asking())
    return asked
