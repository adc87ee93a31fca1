"""A connection that many use at once: whose reply is whose, and who is told when there is none."""

import asyncio
import secrets
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from services.common.valkey_line import Line


@pytest.fixture
async def line(valkey_url: str) -> AsyncIterator[Line]:
    """Of the test's own."""
    made = Line(valkey_url)
    yield made
    await made.close()


async def blocked(line: Line) -> "asyncio.Task[object]":
    """A command that gets no reply, and keeps those behind it from theirs."""
    await line.ask("PING")  # open, so that what is asked now is sent now
    task = asyncio.create_task(line.ask("BLPOP", secrets.token_hex(8), 0))
    await asyncio.sleep(0)
    return task


async def test_many_share_one_connection_and_each_gets_its_own_reply(line: Line) -> None:
    said = [secrets.token_bytes(length) for length in range(200)]  # any bytes
    assert await asyncio.gather(*(line.ask("ECHO", one) for one in said)) == said
    ids = await asyncio.gather(*(line.ask("CLIENT", "ID") for _ in range(10)))
    assert len(set(ids)) == 1


async def test_a_refusal_is_of_who_has_asked_and_of_nobody_behind(line: Line) -> None:
    results = await asyncio.gather(
        line.ask("EVALSHA", "0" * 40, 0), line.ask("NO SUCH COMMAND"), line.ask("PING"), return_exceptions=True
    )
    assert isinstance(results[0], NoScriptError)
    assert isinstance(results[1], ResponseError)
    assert results[2] == b"PONG"


async def test_the_reply_to_who_was_cancelled_is_nobodys(line: Line) -> None:
    await line.ask("PING")
    asked = [asyncio.create_task(line.ask("ECHO", str(number))) for number in range(6)]
    await asyncio.sleep(0)
    for one in asked[::2]:
        one.cancel()
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert results[1::2] == [b"1", b"3", b"5"]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])


async def test_when_it_is_given_up_who_waits_is_told_and_the_next_is_answered(line: Line) -> None:
    first = await blocked(line)
    behind = asyncio.create_task(line.ask("PING"))
    await asyncio.sleep(0)
    line.give_up("for the test")
    for one in (first, behind):
        with pytest.raises(RedisConnectionError, match="for the test"):
            await one
    assert await line.ask("PING") == b"PONG"


async def test_when_the_server_closes_it_who_waits_is_told_and_the_next_is_answered(
    line: Line, valkey_url: str
) -> None:
    number = await line.ask("CLIENT", "ID")
    waiting, other = await blocked(line), Line(valkey_url)
    await other.ask("CLIENT", "KILL", "ID", number)
    with pytest.raises(RedisConnectionError):
        await waiting
    assert await line.ask("CLIENT", "ID") != number
    await other.close()


async def test_what_is_no_reply_ends_the_connection(unused_tcp_port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK\r\n" * 2)  # the driver says its name and version
        await reader.readuntil(b"PING\r\n")
        writer.write(b"?\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", unused_tcp_port):
        line = Line(f"redis://127.0.0.1:{unused_tcp_port}/0")
        with pytest.raises(RedisConnectionError, match="no reply"):
            await line.ask("PING")
        await line.close()


async def test_nobody_listens_and_all_who_wait_are_told(unused_tcp_port: int) -> None:
    line = Line(f"redis://127.0.0.1:{unused_tcp_port}/0")
    results = await asyncio.gather(*(line.ask("PING") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [RedisConnectionError] * 3
    await line.close()
