"""Turns at products: how many have one, in which order, and that none is lost whatever becomes of whoever waits."""

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.orders.turns import NoTurnError, Turns

NEVER = 3600.0  # seconds: longer than any test
LETTERS = "ABCD"
PRODUCTS = {letter: uuid.UUID(int=number) for number, letter in enumerate(LETTERS)}


@dataclass
class Door:
    """Orders as tasks that say when they are in, and leave when they are let."""

    turns: Turns
    inside: list[str] = field(default_factory=list)  # names, in the order in which they came in
    entered: list[str] = field(default_factory=list)  # the same, and who has left
    orders: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    ends: dict[str, asyncio.Event] = field(default_factory=dict)

    async def arrive(self, *names: str) -> None:
        """An order each, of the products its name starts with: "A1" is of A, "AB2" of A and B."""
        for name in names:
            self.ends[name] = asyncio.Event()
            self.orders[name] = asyncio.create_task(self._order(name))
        await settled()

    async def _order(self, name: str) -> None:
        async with self.turns.turn(PRODUCTS[letter] for letter in name.rstrip("0123456789")):
            self.inside.append(name)
            self.entered.append(name)
            try:
                await self.ends[name].wait()
            finally:
                self.inside.remove(name)

    async def leave(self, *names: str) -> None:
        """They have done what they came for."""
        for name in names:
            self.ends[name].set()
        await settled()

    async def cancel(self, *names: str) -> None:
        """They are cancelled, wherever they are."""
        for name in names:
            self.orders[name].cancel()
        await settled()

    async def empty(self) -> None:
        """All have left, and nothing is remembered of them."""
        for end in self.ends.values():
            end.set()
        await asyncio.gather(*self.orders.values(), return_exceptions=True)
        assert self.inside == []
        assert self.turns.products == 0


def basket_of(name: str) -> set[str]:
    return set(name.rstrip("0123456789"))


async def settled() -> None:
    """Whatever can go on has gone on."""
    for _ in range(8):
        await asyncio.sleep(0)


def waiting() -> float:
    return REGISTRY.get_sample_value("order_turns_waiting") or 0.0


async def test_so_many_of_one_product_are_in_and_the_next_when_one_leaves() -> None:
    door = Door(Turns(2, NEVER))
    await door.arrive("A1", "A2", "A3", "A4")
    assert door.inside == ["A1", "A2"]
    assert waiting() == 2
    await door.leave("A2")
    assert door.inside == ["A1", "A3"]
    await door.empty()
    assert waiting() == 0


async def test_first_come_first_served_also_before_one_who_comes_as_a_turn_becomes_free() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "A3")
    door.ends["A1"].set()
    while "A1" in door.inside:
        await asyncio.sleep(0)
    await door.arrive("A4")  # A2 has been told, and may not have run yet
    for name in ("A2", "A3", "A4"):
        assert door.inside == [name]
        await door.leave(name)
    await door.empty()


async def test_other_products_do_not_wait() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "B1", "C1")
    assert door.inside == ["A1", "B1", "C1"]
    await door.empty()


async def test_a_free_turn_is_taken_before_another_task_runs() -> None:
    turns, ran = Turns(1, NEVER), False

    async def other() -> None:
        nonlocal ran
        ran = True

    task = asyncio.create_task(other())
    async with turns.turn(PRODUCTS.values()):
        assert not ran
    assert not ran
    await task


async def test_an_order_waits_where_most_wait_and_keeps_nobody_from_its_other_products() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "AB3", "AB4", "B1")
    assert door.inside == ["A1", "B1"]
    await door.leave("A1", "A2")
    assert door.inside == ["B1", "AB3"]
    await door.empty()


async def test_who_has_left_no_longer_counts_for_where_most_wait() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "A3")
    await door.leave("A1", "A2")
    await door.arrive("B1", "B2", "AB4")
    await door.leave("A3")
    assert door.inside == ["B1"]
    await door.leave("B1", "B2")
    assert door.inside == ["AB4"]
    await door.empty()


async def test_what_all_baskets_have_in_common_is_what_they_have_their_turns_at() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("BA1", "CA2", "DA3", "A4")
    assert len(door.inside) == 2  # of the first two nobody could know what they have in common
    await door.leave("BA1", "CA2")
    assert door.inside == ["DA3"]
    await door.empty()


async def test_orders_with_crossing_products_do_not_wait_for_each_other_in_a_circle() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("AB1", "BA2", "AB3", "BA4")
    for name in ("AB1", "BA2", "AB3", "BA4"):
        assert door.inside == [name]
        await door.leave(name)
    await door.empty()


async def test_the_same_product_on_many_lines_is_one_turn() -> None:
    door = Door(Turns(2, NEVER))
    await door.arrive("AAA1", "A2", "A3")
    assert door.inside == ["AAA1", "A2"]
    await door.empty()


@pytest.mark.parametrize("gone", ["A1", "A2", "A3"])
async def test_who_is_cancelled_inside_or_waiting_gives_the_turn_back(gone: str) -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "A3")
    await door.cancel(gone)
    for name in [name for name in ("A1", "A2", "A3") if name != gone]:
        assert door.inside == [name]
        await door.leave(name)
    await door.empty()
    assert waiting() == 0


async def test_who_is_cancelled_when_its_turn_has_come_and_it_has_not_run_yet_passes_it_on() -> None:
    door = Door(Turns(1, NEVER))
    await door.arrive("A1", "A2", "A3")
    door.ends["A1"].set()
    while "A1" in door.inside:
        await asyncio.sleep(0)
    assert door.inside == []
    door.orders["A2"].cancel()
    await settled()
    assert door.inside == ["A3"]
    await door.empty()


async def test_who_has_no_turn_in_time_is_told_so_counted_and_forgotten() -> None:
    door = Door(Turns(1, 0.0))
    missed = REGISTRY.get_sample_value("order_turns_missed_total") or 0.0
    await door.arrive("A1", "A2")
    with pytest.raises(NoTurnError):
        await door.orders["A2"]
    assert REGISTRY.get_sample_value("order_turns_missed_total") == missed + 1
    assert waiting() == 0
    await door.leave("A1")
    await door.arrive("A3")
    assert door.inside == ["A3"]
    await door.empty()


async def test_an_order_that_fails_gives_its_turn_back() -> None:
    turns = Turns(1, NEVER)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with turns.turn([PRODUCTS["A"]]):
                raise ZeroDivisionError
    assert turns.products == 0


BASKETS = st.lists(st.sampled_from(LETTERS), min_size=1, max_size=4).map("".join)
STEPS = st.lists(st.tuples(st.sampled_from(["arrive", "leave", "cancel"]), BASKETS, st.integers(0, 30)), max_size=30)


@settings(max_examples=40, deadline=None)
@given(at_once=st.integers(1, 3), steps=STEPS)
def test_whatever_comes_leaves_and_is_cancelled_the_turns_hold(
    at_once: int, steps: Sequence[tuple[str, str, int]]
) -> None:
    """Never more in than there are turns, nobody waits without need, in order, and nothing is left at the end."""

    async def run() -> None:
        door = Door(Turns(at_once, NEVER))
        for number, (step, basket, which) in enumerate(steps):
            here = [name for name, task in door.orders.items() if not task.done()]
            if step == "arrive":
                await door.arrive(f"{basket}{number}")
            elif here:
                name = here[which % len(here)]
                await (door.leave(name) if step == "leave" else door.cancel(name))
            baskets = [basket_of(name) for name in door.inside]
            assert len(baskets) <= at_once * len(set().union(*baskets))
            for letter in LETTERS:
                assert baskets.count({letter}) <= at_once
            for name, task in door.orders.items():
                if not task.done() and name not in door.inside:
                    assert any(sum(letter in one for one in baskets) >= at_once for letter in basket_of(name)), name
        await door.empty()
        for letter in LETTERS:
            alone = [int(name.lstrip(LETTERS)) for name in door.entered if basket_of(name) == {letter}]
            assert alone == sorted(alone)

    asyncio.run(run())
