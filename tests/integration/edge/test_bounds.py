"""How old an answer may be that the edge shows: 60 s and 300 s, here a few seconds, by the same configuration.

nginx counts whole seconds: what may be shown for n seconds is shown for less than n + 1.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from tests.conftest import free_port
from tests.edge import Origin, Running, kept, running
from tests.faults.waiting import eventually
from tests.serving import serving

LISTING = "/v1/products"
LONG = (1, 60)
SHORT = (1, 2)
END = sum(SHORT) + 1


async def test_for_fifty_clients_of_a_stale_answer_one_request_goes_to_the_origin(tmp_path: Path) -> None:
    origin = Origin(LONG)
    async with serving(origin) as port, running(tmp_path, {"catalog": port}, seconds=LONG) as edge:
        assert (await edge.get(LISTING)).content == b"first"
        origin.open.clear()
        await stale(edge)
        found = await asyncio.gather(*(edge.get(LISTING) for _ in range(50)))
        assert {(response.content, kept(response)) for response in found} == {(b"first", "hit; detail=stale")}
        assert len(origin.requests) == 2, "the first, and one in the background"
        origin.body = b"second"
        origin.open.set()
        await becomes(edge, b"second")


async def test_of_fifty_clients_of_an_answer_nobody_has_one_asks_the_origin(tmp_path: Path) -> None:
    origin = Origin()
    async with serving(origin) as port, running(tmp_path, {"catalog": port}) as edge:
        found = await asyncio.gather(*(edge.get(LISTING) for _ in range(50)))
        assert {response.content for response in found} == {b"first"}
        assert len(origin.requests) == 1


async def test_a_stale_answer_is_shown_while_its_origin_fails_and_while_it_is_dead(tmp_path: Path) -> None:
    origin, port = Origin(LONG), free_port()
    async with running(tmp_path, {"catalog": port}, seconds=LONG) as edge:
        async with serving(origin, port=port):
            assert (await edge.get(LISTING)).content == b"first"
            origin.status, origin.body = 500, b"broken"
            await stale(edge)
            await eventually(lambda: updated_in_vain(edge, "500"), "the origin has failed in the background")
            await stale(edge)
        await stale(edge)
        await eventually(lambda: updated_in_vain(edge, "502"), "the origin was dead in the background")
        await stale(edge)
        origin.status, origin.body = 200, b"second"
        async with serving(origin, port=port):
            await becomes(edge, b"second")


async def test_once_its_time_is_over_an_answer_is_not_shown_again_whatever_its_origin_does(tmp_path: Path) -> None:
    async def of_one_that_fails(home: Path) -> None:
        origin = Origin(SHORT)
        async with serving(origin) as port, running(home, {"catalog": port}, seconds=SHORT) as edge:
            stored = await first(edge)
            origin.status, origin.body = 500, b"broken"
            await shown_until(edge, stored, lambda response: response.status_code == 500)
            for _ in range(5):
                assert (await edge.get(LISTING)).content == b"broken"

    async def of_one_that_is_dead(home: Path) -> None:
        port = free_port()
        async with running(home, {"catalog": port}, seconds=SHORT) as edge:
            longer = {"X-Accel-Expires": "3600", "Expires": "Thu, 31 Dec 2099 00:00:00 GMT"}  # are not believed
            async with serving(Origin(SHORT, headers=longer), port=port):
                stored = await first(edge)
            await shown_until(edge, stored, lambda response: response.status_code == 503)
            for _ in range(5):
                refused = await edge.get(LISTING)
                assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
                assert refused.headers["retry-after"] == "1"
                assert refused.headers["cache-control"] == "private, no-store"

    async def of_one_that_hangs(home: Path) -> None:
        origin = Origin(SHORT)
        async with serving(origin) as port, running(home, {"catalog": port}, seconds=SHORT) as edge:
            stored = await first(edge)
            origin.open.clear()
            ended = asyncio.create_task(shown_until(edge, stored, lambda response: response.content == b"second"))
            # The first, one in the background, and once the time is over one that a client waits for.
            await eventually(lambda: asked(origin, 3), "a client waits for the origin")
            origin.body = b"second"
            origin.open.set()
            await ended

    async def of_one_that_has_become_private(home: Path) -> None:
        origin = Origin(SHORT)
        async with serving(origin) as port, running(home, {"catalog": port}, seconds=SHORT) as edge:
            stored = await first(edge)
            origin.headers, origin.body = {"Cache-Control": "private, no-store"}, b"second"
            await shown_until(edge, stored, lambda response: response.content == b"second")
            before = len(origin.requests)
            for number in range(1, 4):
                origin.body = str(number).encode()
                assert (await edge.get(LISTING)).content == origin.body
                assert len(origin.requests) == before + number

    scenes = (of_one_that_fails, of_one_that_is_dead, of_one_that_hangs, of_one_that_has_become_private)
    homes = [tmp_path / scene.__name__ for scene in scenes]
    await asyncio.gather(*(scene(home) for scene, home in zip(scenes, homes, strict=True)))


async def first(edge: Running) -> float:
    """The time when the first answer is there, which was kept."""
    response = await edge.get(LISTING)
    assert (response.content, kept(response)) == (b"first", "fwd=uri-miss")
    return time.monotonic()


async def shown_until(edge: Running, stored: float, over: Callable[[httpx.Response], bool]) -> None:
    """The first answer is shown until its end, at the latest, and then one that is `over`."""
    while True:
        now = time.monotonic()
        response = await edge.get(LISTING)
        if over(response):
            return
        assert (response.status_code, response.content) == (200, b"first")
        assert now - stored < END, "it is shown although its time is over"
        await asyncio.sleep(0.02)


async def stale(edge: Running) -> None:
    """The first answer is shown, and is stale."""

    async def so() -> bool:
        response = await edge.get(LISTING)
        assert (response.status_code, response.content) == (200, b"first")
        return kept(response) == "hit; detail=stale"

    await eventually(so, "the answer is stale")


async def becomes(edge: Running, body: bytes) -> None:
    """It is shown, after the first answer."""

    async def so() -> bool:
        response = await edge.get(LISTING)
        assert response.content in (b"first", body)
        return response.content == body

    await eventually(so, f"{body!r} is shown")


async def asked(origin: Origin, times: int) -> bool:
    """Whether it was asked so often."""
    return len(origin.requests) >= times


async def updated_in_vain(edge: Running, status: str) -> bool:
    """Whether the log tells of an update that has ended so."""
    return any(line["upstream_status"] == status for line in edge.logged())
