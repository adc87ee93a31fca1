"""Requests survive a bad moment, with the same key; what is done for many things begins in their order."""

import asyncio
from collections.abc import Callable

import httpx
import pytest

from loadtests.trade import target
from loadtests.trade.target import UnansweredError, ask, each, problem_code, reasons, settled

Answer = httpx.Response | httpx.TransportError


def problem(status: int, code: str, **more: object) -> httpx.Response:
    return httpx.Response(status, json={"code": code, **more}, headers={"Retry-After": "0"})


def client(*answers: Answer) -> tuple[httpx.AsyncClient, list[httpx.Request]]:
    """A client that is given `answers` one after the other, and what it has sent."""
    remaining, sent = iter(answers), list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        found = next(remaining)
        if isinstance(found, httpx.TransportError):
            raise found
        return found

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://orders"), sent


@pytest.mark.parametrize(
    "moment",
    [
        lambda: problem(503, "unavailable"),
        lambda: problem(409, "request_in_progress"),
        lambda: problem(429, "rate_limited"),
        lambda: httpx.ReadError("gone"),
        lambda: httpx.ConnectError("not there"),
    ],
)
async def test_a_bad_moment_is_asked_again_with_the_same_key_and_body(moment: Callable[[], Answer]) -> None:
    asking, sent = client(moment(), httpx.Response(201, json={}))
    response = await ask(asking, "POST", "/v1/orders", {"a": 1}, key="run:1")
    assert response.status_code == 201
    assert response.extensions["attempts"] == len(sent) == 2
    assert {(one.headers["idempotency-key"], one.content) for one in sent} == {("run:1", b'{"a":1}')}


@pytest.mark.parametrize("refusal", [(409, "out_of_stock"), (422, "invalid"), (404, "not_found"), (500, "internal")])
async def test_a_refusal_is_an_answer(refusal: tuple[int, str]) -> None:
    asking, sent = client(problem(*refusal))
    assert problem_code(await ask(asking, "POST", "/v1/orders", {}, key="run:1")) == refusal[1]
    assert len(sent) == 1


async def test_it_gives_up_after_so_many_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "ATTEMPTS", 2)
    asking, sent = client(problem(503, "unavailable"), problem(503, "unavailable"), httpx.Response(201))
    with pytest.raises(UnansweredError, match="unavailable"):
        await ask(asking, "GET", "/v1/orders/1")
    assert len(sent) == 2


def test_reasons_say_where_and_why() -> None:
    errors = [{"at": "/items/0/quantity", "reason": "at least 1"}]
    assert reasons(problem(422, "invalid", detail="no", errors=errors)) == ("/items/0/quantity: at least 1",)
    assert reasons(problem(409, "out_of_stock", detail="no")) == ("no",)
    assert reasons(httpx.Response(502, text="<html>")) == ("<html>",)
    assert problem_code(httpx.Response(502, text="<html>")) == "502"


async def test_so_many_at_once_and_each_begins_in_its_turn() -> None:
    begun, under_way, most = list[int](), 0, 0

    async def work(number: int) -> None:
        nonlocal under_way, most
        begun.append(number)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    await each(range(20), 3, work)
    assert begun == list(range(20))
    assert most == 3


async def test_the_first_error_ends_all() -> None:
    async def work(number: int) -> None:
        if number == 1:
            raise UnansweredError("no")
        await asyncio.Event().wait()

    with pytest.raises(UnansweredError):
        await asyncio.wait_for(each(range(3), 2, work), 5)


async def test_what_does_not_settle_is_given_as_it_last_was() -> None:
    answers = iter([1, 2, 3])

    async def what() -> int:
        return next(answers)

    assert await settled(what, lambda answer: answer == 2, seconds=5) == 2
    assert await settled(what, lambda answer: answer == 2, seconds=0) == 3
