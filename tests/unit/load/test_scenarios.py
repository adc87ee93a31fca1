from collections import Counter

import pytest

from loadtests.load import scenario
from loadtests.load.agreement import STATEMENTS
from loadtests.load.scenario import FOLDER, Objectives

PEAK_RATE = 463  # requests a second


def test_the_mix_has_twenty_reads_for_each_write() -> None:
    asked = Counter(step for steps in scenario.read("mixed").deck for step in steps)
    assert asked.pop("place_order") == 1
    assert asked.total() == 20
    assert "place_of_one_product" not in asked


def test_at_its_peak_the_shop_takes_63_orders_and_answers_400_reads_a_second() -> None:
    peak = scenario.read("peak")
    asked = Counter(step for steps in peak.deck for step in steps)
    orders = PEAK_RATE * asked.pop("place_order") / peak.requests_per_journey / len(peak.deck)
    assert orders == pytest.approx(63, rel=0.005)
    assert PEAK_RATE - orders == pytest.approx(400, rel=0.005)


def test_all_promised_scenarios_are_there() -> None:
    promised = {"checkout", "browse", "my-orders", "dashboard", "mixed", "peak", "spike", "soak"}
    assert set(scenario.names()) == promised | {"flash-sale", "sale-beside"}


def test_beside_a_flash_sale_other_products_are_bought_once_in_26_and_are_held_to_the_objective() -> None:
    beside = scenario.read("sale-beside")
    assert Counter(beside.deck) == {("place_of_one_product",): 25, ("place_order",): 1}
    assert beside.users(520) == 1_040, "as many as fill two seconds"
    assert "place_order" not in Objectives.read().reported_apart


@pytest.mark.parametrize("name", scenario.names())
def test_the_stages_of_a_scenario_fill_all_of_it(name: str) -> None:
    found = scenario.read(name)
    assert sum(stage.share for stage in found.stages) == pytest.approx(1.0)
    assert found.times(0.0) == found.stages[0].times
    assert found.times(0.999) == found.stages[-1].times
    assert found.times(1.0) == 0


@pytest.mark.parametrize("name", scenario.names())
def test_every_operation_is_known_to_both_generators_and_has_its_statement(name: str) -> None:
    in_k6 = (FOLDER / "k6" / "lib" / "operations.js").read_text()
    in_locust = (FOLDER / "locust" / "locustfile.py").read_text()
    for operation in scenario.read(name).operations:
        assert operation in STATEMENTS
        assert f"  {operation}: (" in in_k6
        assert f"    def {operation}(self" in in_locust


def test_a_spike_is_several_times_its_rate_and_over_before_the_end() -> None:
    found = scenario.read("spike")
    times = [found.times(share / 100) for share in range(100)]
    assert max(times) >= 4
    assert times[0] == times[-1] == 1


def test_without_a_replica_reports_are_left_out_and_nothing_else() -> None:
    whole, without = scenario.read("dashboard"), scenario.read("dashboard", reports=False)
    assert set(whole.operations) - set(without.operations) == {"get_sales"}
    assert len(without.deck) == len(whole.deck)


def test_journeys_times_their_requests_are_the_rate() -> None:
    mixed = scenario.read("mixed")
    assert mixed.journeys(100, 60) * mixed.requests_per_journey == pytest.approx(6_000)
    assert mixed.users(100) == round(2 * 100 / 3.5)


def test_the_objectives_are_those_the_project_promises() -> None:
    objectives = Objectives.read()
    assert (objectives.db_ms_p99_below, objectives.response_ms_p99_below) == (20, 200)
    assert (objectives.p50_differs_by_at_most, objectives.database_differs_by_at_most) == (0.2, 0.1)
    assert (objectives.dropped_max, objectives.failed_max) == (0, 0)
    assert objectives.reported_apart == ("place_of_one_product",)
