"""k6 and Locust on the real backend, for seconds and at a low rate: what they count, never how fast it was."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from loadtests.load import table
from loadtests.load.accounting import account
from loadtests.load.generators import k6, locust
from loadtests.load.scenario import OBJECTIVES
from loadtests.load.shop import Shop, visited
from services.cli import up
from services.common import clock, ids
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.e2e.loadtests import command_line

RUN_SECONDS = 300.0  # of a machine with much else to do; it ends by itself long before
NEEDED = {
    *("token-issuer", "outbox-relay", "orders-maintenance", "orders-projector", "catalog-api", "orders-api"),
}
SMALL = ("--products", "50", "--orders", "200", "--warm-seconds", "1")
PLACED_AND_READ = {f"db_query_seconds{{statement={name}}}" for name in ("place_order", "get_events")}

Json = dict[str, Any]


@pytest.fixture(scope="module")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    """What k6 and Locust ask, without a replica, in a home and on ports of its own."""
    for generator in (k6(), locust()):
        if not generator.installed:
            pytest.skip(generator.missing)
    settings = StackSettings(home=tmp_path_factory.mktemp("load") / "home", port_base=free_port_base())
    processes = [process for process in PROCESSES if process.name in NEEDED]
    async with Stack(settings, processes=processes, prepare=up.prepare) as started:
        yield started


async def loaded(stack: Stack, tmp_path: Path, *arguments: str, **objectives: float) -> tuple[int, str, Json]:
    """Exit code, output and result of `python -m loadtests.load`; `objectives` instead of the project's own."""
    file = tmp_path / "objectives.json"
    file.write_text(json.dumps(json.loads(OBJECTIVES.read_text()) | objectives))
    before = set((stack.settings.home / "load").glob("*"))
    told_to = (*SMALL, "--objectives", str(file), *arguments)
    code, told = await command_line(stack, "load", *told_to, seconds=RUN_SECONDS)
    made = set((stack.settings.home / "load").glob("*")) - before
    assert len(made) == 1, told
    folder = made.pop()
    assert not list(folder.rglob("targets.json")), "tokens are left behind"
    return code, told, json.loads((folder / "result.json").read_text()) | {"folder": folder}


async def test_both_generators_count_what_the_backend_has_and_say_which_objective_was_missed(
    stack: Stack, tmp_path: Path
) -> None:
    code, told, result = await loaded(
        stack,
        tmp_path,
        "--scenario",
        "mixed",
        "--rate",
        "12",
        "--seconds",
        "3",
        "--roll-over",
        response_ms_p99_below=0.001,
    )
    assert code == 1, told
    assert [run["generator"] for run in result["runs"]] == ["k6", "locust"], told
    for run in result["runs"]:
        orders = run["orders"]
        assert run["void"] == [], told
        assert run["failed"] == 0, (result["folder"] / f"{run['generator']}-1" / f"{run['generator']}.log").read_text()
        assert orders["counted"] == orders["acknowledged"] == orders["rows"] == orders["events"] > 0
        assert all(one["agrees"] for one in run["database"]), run["database"]
        assert {one["what"] for one in run["database"]} >= PLACED_AND_READ
        # This hangs on no clock: nothing is answered within a microsecond.
        assert any(line.startswith(f"{run['generator']} 1: ") and "0.001" in line for line in result["wrong"]), told
        raw = result["folder"] / f"{run['generator']}-1" / f"{run['generator']}.csv.gz"
        assert raw.stat().st_size > 0
        judge_evidence(run)
    assert "This stack has no replica" in told
    assert result["plans"]["get_events"]["partitions"] == {"orders.order_events": 1, "orders.orders": 1}
    document = tmp_path / "performance.md"
    mark = "python -m loadtests.load --table"
    document.write_text(f"Before\n<!-- {mark} -->\n<!-- end: {mark} -->\nAfter\n")
    table.write(result["folder"] / "result.json", document)
    assert "| orders-api | `get_events` | " in document.read_text()
    assert set(result["machine"]) >= {"commit", "cpu", "cores", "fsyncs_per_second", "postgres"}
    assert result["machine"]["fsyncs_per_second"] > 0


def judge_evidence(run: Json) -> None:
    """Both who count statements have counted those of the window, and none of before."""
    found = {(one["process"], one["statement"]): one for one in run["statements"]}
    read, looked = found["orders-api", "get_events"], found["outbox-relay", "outboxes_look"]
    asked = sum(run["operations"][name]["requests"] for name in ("get_order", "get_order_events"))
    assert read["calls"] <= asked + 5, "with those that were under way"
    for one in (read, looked):
        low, high = one["p99_between_ms"]
        assert low <= one["p99_ms"] <= (high or one["p99_ms"])
        assert one["postgresql"]["calls"] > 0
        assert one["postgresql"]["blocks_hit"] + one["postgresql"]["blocks_read"] > 0
    assert len(run["upkeep"]["months_made"]) == 1


async def test_a_flash_sale_sells_exactly_what_there_is(stack: Stack, tmp_path: Path) -> None:
    arguments = ("--scenario", "flash-sale", "--only", "k6", "--rate", "10", "--seconds", "3")
    code, told, result = await loaded(stack, tmp_path, *arguments, dropped_max=1_000)
    assert code == 0, told
    (run,) = result["runs"]
    orders = run["orders"]
    assert orders["units_on_sale"] == orders["units_sold"] == orders["acknowledged"] == orders["rows"] == 16
    assert run["operations"]["place_of_one_product"]["requests"] > 16 - 10, "the others were refused"


async def test_an_order_that_is_acknowledged_and_not_there_makes_the_run_void(stack: Stack) -> None:
    shop = Shop.of(stack.settings)
    visit = await visited(shop, seconds=1, products=5, units=0)
    lost = ids.to_text(ids.new_id(clock.now()))
    (reason,) = (await account(shop, visit, 1, [lost])).mismatches()
    assert reason == f"1 orders were acknowledged and have no row, such as {lost}"
