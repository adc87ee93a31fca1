"""Breakers before real peers that die in several ways: one opens in time, tries once a window, and closes again."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import orjson
import pytest

from services.common import calls, service_token
from services.common.breaker import Breaker
from services.common.calls import Service
from services.common.errors import DomainError
from services.common.events_api import EventsApi
from services.common.service_token import ServiceToken, TokenError
from services.common.stream import Received
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.integration.common.conftest import Ledger, numbered
from tests.peer import Mode, Peer, serving_peer
from tests.product_events import publish

TIMEOUT_SECONDS = 30.0  # no answer is late because the machine is busy; what never comes is waited for shortly
NEVER_COMES_SECONDS = 0.4
RESET_SECONDS = 0.5
Ask: TypeAlias = Callable[[], Awaitable[object]]
DEAD: tuple[Mode, ...] = ("refused", "frozen", "500")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short window, and nothing fails by chance."""
    for module in (calls, service_token):
        monkeypatch.setattr(module, "TIMEOUT_SECONDS", TIMEOUT_SECONDS)
        monkeypatch.setattr(module, "RESET_SECONDS", RESET_SECONDS)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    """orders-api and issuer in one."""

    def answer(path: str) -> bytes:
        if path == "/.well-known/openid-configuration":
            return orjson.dumps({"issuer": started.url, "token_endpoint": f"{started.url}/token"})
        if path == "/token":
            return orjson.dumps({"access_token": secrets.token_hex(4), "token_type": "Bearer", "expires_in": 0})
        return b'{"data": []}'

    async with serving_peer(answer) as started:
        yield started


@pytest.fixture(params=["service", "token"])
async def asking(request: pytest.FixtureRequest, peer: Peer) -> AsyncIterator[tuple[Ask, Breaker, int]]:
    """Something that asks the peer, its breaker, and the limit of that."""
    name = f"{request.param}-{secrets.token_hex(4)}"
    if request.param == "service":
        service = Service(name, peer.url)
        yield lambda: service.get("/", authorization="", parameters={}), service.breaker, calls.FAILURES
        await service.aclose()
    else:
        token = ServiceToken(peer.url, client_id="me", client_secret="x", scope="")
        yield token.authorization, token.breaker, service_token.FAILURES


async def _refused(ask: Ask) -> Exception:
    with pytest.raises((DomainError, TokenError)) as error:
        await ask()
    return error.value


def _probes(breaker: Breaker) -> float:
    return sum(
        metric("breaker_probes_total", breaker=breaker.name, outcome=outcome)
        for outcome in ("success", "failure", "cancelled")
    )


async def _window_over(breaker: Breaker) -> None:
    async def over() -> bool:
        return not breaker.left_alone

    await eventually(over, "the window is over", seconds=5)


@pytest.mark.parametrize("how", DEAD)
async def test_it_opens_within_its_limit_tries_once_a_window_and_closes_when_the_peer_is_back(
    asking: tuple[Ask, Breaker, int], peer: Peer, how: Mode
) -> None:
    ask, breaker, limit = asking
    await ask()
    await peer.become(how)
    breaker._deadline_seconds = NEVER_COMES_SECONDS if how == "frozen" else TIMEOUT_SECONDS
    for number in range(limit):
        assert breaker.state == "closed", f"after {number} failures"
        await _refused(ask)
    assert breaker.state == "open"
    asked, rejected = peer.asked, metric("breaker_rejections_total", breaker=breaker.name)
    for error in await asyncio.gather(*(_refused(ask) for _ in range(50))):
        if isinstance(error, DomainError):
            assert (error.code, error.status, error.headers) == ("unavailable", 503, {"Retry-After": "1"})
    assert peer.asked == asked, "it is left alone"
    assert metric("breaker_rejections_total", breaker=breaker.name) == rejected + 50
    await _window_over(breaker)
    probes, rejected = _probes(breaker), metric("breaker_rejections_total", breaker=breaker.name)
    await asyncio.gather(*(_refused(ask) for _ in range(50)))
    assert _probes(breaker) == probes + 1
    assert peer.asked == asked + (how != "refused"), "of fifty one has asked"
    assert metric("breaker_rejections_total", breaker=breaker.name) == rejected + 49
    await peer.become("well")
    breaker._deadline_seconds = TIMEOUT_SECONDS
    await _window_over(breaker)
    await ask()
    assert breaker.state == "closed"


async def test_two_hundred_callers_that_leave_do_not_open_it(asking: tuple[Ask, Breaker, int], peer: Peer) -> None:
    ask, breaker, _ = asking
    failures = metric("breaker_failures_total", breaker=breaker.name)
    await peer.become("frozen")
    leaving = [asyncio.ensure_future(ask()) for _ in range(200)]

    async def has_asked() -> bool:
        return peer.asked > 0

    await eventually(has_asked, "the peer was asked")
    for one in leaving:
        one.cancel()
    ends = await asyncio.gather(*leaving, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 200
    assert breaker.state == "closed"
    assert metric("breaker_failures_total", breaker=breaker.name) == failures
    await peer.become("well")
    await ask()
    assert breaker.state == "closed"


async def test_callers_that_queue_for_a_turn_are_told_as_soon_as_it_opens(peer: Peer) -> None:
    service = Service(f"queued-{secrets.token_hex(4)}", peer.url)
    service.breaker._deadline_seconds = NEVER_COMES_SECONDS
    await peer.become("frozen")
    asked = peer.asked
    crowd = [lambda: service.get("/", authorization="", parameters={})] * (3 * calls.CALLS_MAX)
    await asyncio.gather(*(_refused(ask) for ask in crowd))
    assert peer.asked - asked <= calls.CALLS_MAX + calls.FAILURES, "who had no turn when it opened has not asked"
    await service.aclose()


@asynccontextmanager
async def refusing(status: int, body: bytes, *, for_users: bool) -> AsyncIterator[Service]:
    """A service that refuses everybody."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nRetry-After: 7\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    service = Service(f"refusing-{secrets.token_hex(4)}", url, for_users=for_users)
    yield service
    await service.aclose()
    server.close()


@pytest.mark.parametrize(("status", "for_users"), [(404, False), (429, True)])
async def test_what_a_service_refuses_one_user_or_of_one_thing_opens_nothing(status: int, for_users: bool) -> None:
    refusal = orjson.dumps({"code": "refused", "status": status, "detail": "No."})
    async with refusing(status, refusal, for_users=for_users) as service:
        for _ in range(2 * calls.FAILURES):
            error = await _refused(lambda: service.get("/", authorization="", parameters={}))
            assert isinstance(error, DomainError)
            assert (error.code, error.status, error.headers) == ("refused", status, {"Retry-After": "7"})
        assert service.breaker.state == "closed"
        assert metric("breaker_failures_total", breaker=service.breaker.name) == 0


@pytest.mark.parametrize(
    ("body", "for_users"),
    [(b'{"code": "rate_limited", "status": 429, "detail": "No."}', False), (b"<html>a proxy's page", True)],
    ids=["told by itself", "told by somebody before it"],
)
async def test_a_limit_of_the_caller_as_a_whole_opens_it(body: bytes, for_users: bool) -> None:
    async with refusing(429, body, for_users=for_users) as service:
        for _ in range(calls.FAILURES):
            error = await _refused(lambda: service.get("/", authorization="", parameters={}))
            assert isinstance(error, DomainError)
            assert error.code == "unavailable"
        assert service.breaker.state == "open"


async def test_a_consumer_with_a_gap_catches_up_soon_after_the_service_is_back(
    kafka_url: str, topic: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "RESET_SECONDS", 1.0)  # as it is: it and the consumer's pauses are what is tested
    key = secrets.token_hex(4)
    missing = {"event_id": "x", "type": "counted", "occurred_at": "now", "version": 1}

    def answer(path: str) -> bytes:
        if path == "/.well-known/openid-configuration":
            return orjson.dumps({"issuer": filler.url, "token_endpoint": f"{filler.url}/token"})
        if path == "/token":
            return orjson.dumps({"access_token": "t", "token_type": "Bearer", "expires_in": 3600})
        return orjson.dumps({"data": [missing], "next_cursor": None})

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        async with ledger.database.transaction() as connection:
            new = await ledger.inbox.judge_changes(connection, topic, messages)
            told = [(one.key.decode(), int(one.headers["ce_sequence"])) for one in messages if one.key]
            await connection.executemany(
                "INSERT INTO orders.ledger (key, version) VALUES ($1, $2)",
                [one for one, applies in zip(told, new, strict=True) if applies],
            )
        return {"applied": sum(new)}

    async with serving_peer(answer) as filler:
        token = ServiceToken(filler.url, client_id="me", client_secret="x", scope="")
        await token.authorization()
        await filler.become("500")
        async with EventsApi(f"filler-{key}", filler.url + "/{key}", token, source="/test") as api:
            service, _ = api.breakers
            group = Group(kafka_url, [topic], handle, fill=api.fill)
            async with group.member():
                await publish(kafka_url, topic, numbered(key, 2))

                async def opened() -> bool:
                    return metric("breaker_probes_total", breaker=service.name, outcome="failure") > 0

                await eventually(opened, "the breaker has opened, and the consumer's next try was the probe")
                await filler.become("well")

                async def applied() -> bool:
                    return await ledger.versions(key) == [1, 2]

                await eventually(applied, "the gap is filled: a window and two of the longest pauses are five seconds")
    assert service.state == "closed"
