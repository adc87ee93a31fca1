"""The breaker by a driven clock; and against a model of it, whatever begins and ends in which order."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from services.common.breaker import Breaker, BreakerOpenError

FAILURES, RESET, DEADLINE = 3, 10.0, 4.0
_names = (f"part-{n}" for n in count())


class RefusedError(Exception):
    pass


class Part:
    """A part behind a breaker: each call waits until the test ends it."""

    def __init__(self, deadline: float = DEADLINE) -> None:
        self.now = 1_000.0
        self.name = next(_names)
        self.calls: list[asyncio.Future[str]] = []
        self.breaker = Breaker(
            self.name,
            failures=FAILURES,
            reset_seconds=RESET,
            deadline_seconds=deadline,
            healthy=(RefusedError,),
            monotonic=lambda: self.now,
        )

    async def begin(self) -> "asyncio.Task[str]":
        """A call under way, or one that was rejected and has ended."""

        async def ask() -> str:
            self.calls.append(asyncio.get_running_loop().create_future())
            return await self.calls[-1]

        return await _begun(self.breaker.call(ask))

    async def one(self, outcome: Exception | str) -> None:
        """A call that ends so."""
        assert await self.ended(await self.begin(), outcome) == outcome

    async def ended(self, task: "asyncio.Task[str]", outcome: Exception | str) -> object:
        """What the caller gets when the last call ends so."""
        if isinstance(outcome, Exception):
            self.calls[-1].set_exception(outcome)
        else:
            self.calls[-1].set_result(outcome)
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def opened(self) -> "Part":
        for _ in range(FAILURES):
            await self.one(OSError())
        assert self.breaker.state == "open"
        return self

    def metric(self, name: str, **labels: str) -> float | None:
        return REGISTRY.get_sample_value(name, {"breaker": self.name, **labels})


async def _begun(call: Awaitable[str]) -> "asyncio.Task[str]":
    task: asyncio.Task[str] = asyncio.ensure_future(call)
    await asyncio.sleep(0)  # it runs up to where it waits
    return task


async def _retry_after(task: "asyncio.Task[str]") -> float:
    with pytest.raises(BreakerOpenError) as rejected:
        await task
    return rejected.value.retry_after


async def test_it_opens_after_so_many_failures_in_a_row_and_calls_nobody() -> None:
    part = Part()
    outcomes: list[Exception | str] = [OSError(), OSError(), "fine", OSError(), OSError()]
    for outcome in outcomes:
        await part.one(outcome)
    assert part.breaker.state == "closed"
    await part.one(OSError())
    assert part.breaker.state == "open"
    called = len(part.calls)
    part.now += 4
    assert await _retry_after(await part.begin()) == RESET - 4
    part.now += 5.999
    assert await _retry_after(await part.begin()) == pytest.approx(0.001)
    assert len(part.calls) == called
    assert part.metric("breaker_state") == 2
    assert part.metric("breaker_rejections_total") == 2
    assert part.metric("breaker_failures_total") == 5


async def test_of_fifty_at_once_one_is_the_probe() -> None:
    part = await Part().opened()
    part.now += RESET
    called = len(part.calls)
    tasks = [await part.begin() for _ in range(50)]
    assert len(part.calls) == called + 1
    assert part.metric("breaker_state") == 1
    assert [await _retry_after(task) for task in tasks[1:]] == [DEADLINE] * 49
    part.now += DEADLINE + 1  # and the probe is about to be ended
    assert await _retry_after(await part.begin()) == 0
    assert await part.ended(tasks[0], "back") == "back"
    assert part.breaker.state == "closed"
    assert part.metric("breaker_probes_total", outcome="success") == 1
    assert part.metric("breaker_rejections_total") == 50


async def test_a_probe_that_fails_opens_it_for_as_long_again() -> None:
    part = await Part().opened()
    part.now += RESET + 1
    await part.one(OSError())
    assert part.breaker.state == "open"
    part.now += RESET - 1
    assert await _retry_after(await part.begin()) == 1
    assert part.metric("breaker_probes_total", outcome="failure") == 1


async def test_a_cancelled_probe_leaves_its_place_to_the_next() -> None:
    part = await Part().opened()
    part.now += RESET
    probe = await part.begin()
    assert await _retry_after(await part.begin()) == DEADLINE
    probe.cancel()
    with pytest.raises(asyncio.CancelledError):
        await probe
    assert part.breaker.state == "half-open"
    await part.one("back")
    assert part.breaker.state == "closed"
    assert part.metric("breaker_probes_total", outcome="cancelled") == 1


async def test_callers_that_leave_never_open_it_and_hide_no_failure() -> None:
    part = Part()
    await part.one(OSError())
    for _ in range(100):
        task = await part.begin()
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    assert part.breaker.state == "closed"
    assert part.metric("breaker_failures_total") == 1
    for _ in range(FAILURES - 1):
        await part.one(OSError())
    assert part.breaker.state == "open"


async def test_a_refusal_proves_that_the_part_is_alive() -> None:
    part = Part()
    for _ in range(FAILURES - 1):
        await part.one(OSError())
    await part.one(RefusedError())
    await part.one(OSError())
    assert part.breaker.state == "closed"
    part = await Part().opened()
    part.now += RESET
    await part.one(RefusedError())
    assert part.breaker.state == "closed"
    assert part.metric("breaker_failures_total") == FAILURES


async def test_no_answer_by_the_deadline_is_a_failure_and_the_call_is_ended() -> None:
    part = Part(deadline=0.01)
    for _ in range(FAILURES):
        with pytest.raises(TimeoutError):
            await (await part.begin())
    assert part.breaker.state == "open"
    assert [call.cancelled() for call in part.calls] == [True] * FAILURES


async def test_what_was_begun_before_it_opened_is_neither_probe_nor_failure_of_what_comes_after() -> None:
    part = Part()
    early = [await part.begin() for _ in range(3)]
    answers = list(part.calls)
    await part.opened()
    answers[0].set_result("late")
    assert await early[0] == "late"
    assert part.breaker.state == "open"
    part.now += RESET
    probe = await part.begin()
    answers[1].set_exception(OSError("late"))
    with pytest.raises(OSError, match="late"):
        await early[1]
    assert part.breaker.state == "half-open"
    assert await part.ended(probe, "back") == "back"
    answers[2].set_exception(OSError("later"))
    with pytest.raises(OSError, match="later"):
        await early[2]
    for _ in range(FAILURES - 1):
        await part.one(OSError())
    assert part.breaker.state == "closed"


class Model:
    """What `Breaker` says of itself, for calls that begin and end in any order."""

    def __init__(self) -> None:
        self.state, self.period, self.failed, self.opened_at = "closed", 0, 0, 0.0
        self.probing = False

    def begins(self, now: float) -> bool:
        if self.state == "open" and now >= self.opened_at + RESET:
            self._is("half-open")
        if self.state == "half-open" and not self.probing:
            self.probing = True
            return True
        return self.state == "closed"

    def ends(self, period: int, outcome: str, now: float) -> None:
        if period != self.period:
            return
        self.probing = False
        if outcome == "failure":
            self.failed += 1
            if self.state == "half-open" or self.failed >= FAILURES:
                self._is("open")
                self.opened_at = now
        elif outcome != "cancelled":
            self.failed = 0
            if self.state == "half-open":
                self._is("closed")

    def _is(self, state: str) -> None:
        self.state, self.failed, self.probing = state, 0, False
        self.period += 1


_STEPS = st.one_of(
    st.just(("begin", 0)),
    st.tuples(st.sampled_from(["success", "failure", "failure", "refusal", "cancelled"]), st.integers(0, 3)),
    st.tuples(st.just("pass"), st.sampled_from([1, 9, 10])),
)


@settings(deadline=None)
@given(st.lists(_STEPS, max_size=60))
def test_it_does_what_the_model_does(steps: list[tuple[str, int]]) -> None:
    async def compared() -> None:
        part, model = Part(deadline=60), Model()
        under_way: list[tuple[asyncio.Task[str], asyncio.Future[str], int]] = []
        end: dict[str, Callable[[Any, Any], object]] = {
            "success": lambda _, answer: answer.set_result("fine"),
            "failure": lambda _, answer: answer.set_exception(OSError()),
            "refusal": lambda _, answer: answer.set_exception(RefusedError()),
            "cancelled": lambda task, _: task.cancel(),
        }
        for step, number in steps:
            if step == "begin":
                task = await part.begin()
                admitted = model.begins(part.now)
                assert task.done() is not admitted
                if admitted:
                    under_way.append((task, part.calls[-1], model.period))
                else:
                    await _retry_after(task)
            elif step == "pass":
                part.now += number
            elif under_way:
                task, answer, period = under_way.pop(number % len(under_way))
                end[step](task, answer)
                await asyncio.gather(task, return_exceptions=True)
                model.ends(period, step, part.now)
            assert part.breaker.state == model.state
        for task, *_ in under_way:
            task.cancel()
        await asyncio.gather(*(task for task, *_ in under_way), return_exceptions=True)

    asyncio.run(compared())
