"""A call to another service gives its JSON, its own refusal, or 503: never what somebody else answers in its place."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from services.common import calls
from services.common.calls import Service
from services.common.errors import DomainError

REFUSAL = b'{"type":"urn:problem:gone","title":"Gone","status":410,"code":"gone","detail":"It was here.","since":1}'


@asynccontextmanager
async def answering(status: str, body: bytes, *, pause_seconds: float = 0.0) -> AsyncIterator[Service]:
    """A server that gives one answer to everybody, a byte at a time when there is a pause."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode())
        for number in range(len(body)):
            writer.write(body[number : number + 1])
            if pause_seconds:
                await writer.drain()
                await asyncio.sleep(pause_seconds)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    service = Service("other", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield service
    finally:
        await service.aclose()
        server.close()


async def _refused(service: Service) -> DomainError:
    with pytest.raises(DomainError) as error:
        await service.get("/v1/things", authorization="Bearer x", parameters={"limit": 1})
    return error.value


async def test_its_json_is_given() -> None:
    async with answering("200 OK", b'{"data": [1]}') as service:
        assert await service.get("/", authorization="Bearer x", parameters={}) == {"data": [1]}


async def test_its_own_refusal_is_passed_on() -> None:
    async with answering("410 Gone", REFUSAL) as service:
        error = await _refused(service)
    assert (error.code, error.status, error.detail) == ("gone", 410, "It was here.")
    assert error.extra["since"] == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [
        ("200 OK", b"<html>"),
        ("302 Found", b""),
        ("404 Not Found", b"<html>"),
        ("404 Not Found", b'{"detail": "a framework"}'),
        ("404 Not Found", b"[]"),
        ("429 Too Many Requests", REFUSAL),
        ("500 Internal Server Error", REFUSAL),
    ],
)
async def test_whatever_is_not_its_answer_is_503(status: str, body: bytes) -> None:
    async with answering(status, body) as service:
        assert ((await _refused(service)).code, (await _refused(service)).status) == ("unavailable", 503)


async def test_nobody_there_is_503() -> None:
    service = Service("other", "http://127.0.0.1:1")
    assert (await _refused(service)).status == 503
    await service.aclose()


async def test_an_answer_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "TIMEOUT_SECONDS", 0.5)
    async with answering("200 OK", b'{"data": "' + b"x" * 1_000 + b'"}', pause_seconds=0.02) as service:
        async with asyncio.timeout(10):  # all of it would take twenty
            assert (await _refused(service)).status == 503
