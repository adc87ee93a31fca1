"""Calls that are gathered: who shares one, and what becomes of the others when one fails or is cancelled."""

import asyncio
from collections.abc import Sequence

import pytest

from services.common.gathering import Gathering


class Server:
    """Doubles what it is asked, once it is let; knows what was asked together."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.let = asyncio.Event()

    async def double(self, asked: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(asked))
        await self.let.wait()
        if 0 in asked:
            raise ZeroDivisionError("nothing to double")
        return [2 * number for number in asked]


async def turns() -> None:
    """Whatever can go on has gone on."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_is_asked_in_one_turn_is_one_call_and_each_gets_its_own_answer() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10)
    server.let.set()
    assert await asyncio.gather(*(gathering.ask(number) for number in (1, 2, 3))) == [2, 4, 6]
    assert await gathering.ask(4) == 8
    assert server.calls == [[1, 2, 3], [4]]


async def test_no_more_than_the_most_are_asked_in_one_call() -> None:
    server = Server()
    gathering = Gathering(server.double, most=2)
    server.let.set()
    assert await asyncio.gather(*(gathering.ask(number) for number in range(1, 6))) == [2, 4, 6, 8, 10]
    assert server.calls == [[1, 2], [3, 4], [5]]


async def test_one_by_one_what_is_asked_meanwhile_is_the_next_call_which_began_after_it() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10, one_by_one=True)
    first = asyncio.create_task(gathering.ask(1))
    await turns()
    others = [asyncio.create_task(gathering.ask(number)) for number in (2, 3)]
    await turns()
    assert server.calls == [[1]]
    server.let.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6]
    assert server.calls == [[1], [2, 3]]


async def test_otherwise_no_call_waits_for_another() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10)
    asked: list[asyncio.Task[int]] = []
    for number in (1, 2):
        asked.append(asyncio.create_task(gathering.ask(number)))
        await turns()
    assert server.calls == [[1], [2]]
    server.let.set()
    assert [await task for task in asked] == [2, 4]


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_who_is_cancelled_takes_nobody_with_it(one_by_one: bool) -> None:
    server = Server()
    gathering = Gathering(server.double, most=10, one_by_one=one_by_one)
    asked = [asyncio.create_task(gathering.ask(number)) for number in (1, 2, 3)]
    await turns()
    asked[1].cancel()
    await turns()
    assert asked[1].cancelled()
    server.let.set()
    assert [await asked[0], await asked[2]] == [2, 6]
    assert await gathering.ask(5) == 10


async def test_who_is_cancelled_before_the_call_is_not_asked_about() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10)
    asked = [asyncio.create_task(gathering.ask(number)) for number in (1, 2)]
    await asyncio.sleep(0)  # both have asked, nothing has been called yet
    asked[0].cancel()
    server.let.set()
    assert await asked[1] == 4
    assert server.calls == [[2]]


async def test_an_error_is_that_of_all_who_asked_and_of_nobody_after() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10, one_by_one=True)
    server.let.set()
    results = await asyncio.gather(*(gathering.ask(number) for number in (0, 1)), return_exceptions=True)
    assert [type(result) for result in results] == [ZeroDivisionError, ZeroDivisionError]
    assert await gathering.ask(1) == 2


async def test_closing_cancels_who_waits() -> None:
    server = Server()
    gathering = Gathering(server.double, most=10, one_by_one=True)
    asked = [asyncio.create_task(gathering.ask(1))]
    await turns()
    asked.append(asyncio.create_task(gathering.ask(2)))  # waits for its turn
    await turns()
    await gathering.close()
    await turns()
    assert [task.cancelled() for task in asked] == [True, True]
    assert server.calls == [[1]]
