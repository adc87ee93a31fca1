"""What the edge lets through, what it refuses by itself, and what it writes down about it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from services.common.http_request import BODY_BYTES_MAX
from tests.edge import running
from tests.integration.edge.conftest import Scene

SECRET = "s3cr3t-t0k3n"


async def chunks(size: int) -> AsyncIterator[bytes]:
    """A body that does not say how long it is."""
    for _ in range(size // 1024):
        yield b"x" * 1024
    yield b"x" * (size % 1024)


@pytest.mark.parametrize("streamed", [False, True], ids=["with its length", "chunked"])
async def test_a_body_is_as_long_as_the_apis_take_it_and_no_byte_longer(scene: Scene, streamed: bool) -> None:
    def body(size: int) -> bytes | AsyncIterator[bytes]:
        return chunks(size) if streamed else b"x" * size

    taken = await scene.edge.client.post("/v1/orders", content=body(BODY_BYTES_MAX))
    assert taken.status_code == 200
    refused = await scene.edge.client.post("/v1/orders", content=body(BODY_BYTES_MAX + 1))
    assert (refused.status_code, refused.json()["code"]) == (413, "body_too_large")
    assert refused.headers["content-type"] == "application/problem+json"
    assert [request["content-length"] for request in scene.orders.requests] == [str(BODY_BYTES_MAX)]


async def raw(scene: Scene, request: bytes) -> bytes:
    """The status line that these bytes get."""
    reader, writer = await asyncio.open_connection("127.0.0.1", scene.edge.edge.port)
    writer.write(request)
    line = await asyncio.wait_for(reader.readline(), 10)
    writer.close()
    return line


TWO_WAYS = (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked",
    b"Content-Length: 4\r\nContent-Length: 5",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: xchunked",
    b"Content-Length: +4",
    b"Content-Length : 4",
)


async def test_a_body_whose_end_could_be_read_in_two_ways_is_refused(scene: Scene) -> None:
    for headers in TWO_WAYS:
        line = await raw(scene, b"POST /v1/orders HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n\r\n0\r\n\r\n")
        assert line.split()[1] in (b"400", b"501"), headers
    assert scene.orders.requests == []


NONE_OF_OURS = (
    "//v1/products",
    "/v1//products",
    "/v1/products/",
    "/v1/./products",
    "/v1/orders/../products",
    "/v1/orders/%2e%2e/products",
    "/v1%2fproducts",
    "/v1/products/a%2fb",
    "/v1/products;x",
    "/v1/products/a\\b",
    "/V1/products",
    "/healthz/",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/callbacks/sandbox",
)


async def test_a_path_that_is_none_of_ours_reaches_nobody(scene: Scene) -> None:
    for path in NONE_OF_OURS:
        line = await raw(scene, f"GET {path}?x=1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert line.split()[1] == b"404", path
    line = await raw(scene, b"GET /v1/products/a%00 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert line.split()[1] == b"400"
    assert scene.catalog.requests == scene.orders.requests == []


async def test_what_the_edge_says_itself_is_a_problem_document_that_nobody_keeps(scene: Scene) -> None:
    for path, status, code in (("/v1/nothing", 404, "not_found"), ("/v1/status", 503, "unavailable")):
        refused = await scene.edge.get(f'{path}?q="')
        content = refused.json()
        assert (refused.status_code, content["status"], content["code"]) == (status, status, code)
        assert content["instance"] == path
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.headers.get_list("cache-control") == ["private, no-store"]
        assert ("retry-after" in refused.headers) == (status == 503)
    assert (await scene.edge.get('/v1/"')).json()["instance"] == "/"


async def test_its_own_health_says_nothing_of_who_is_behind(scene: Scene) -> None:
    health = await scene.edge.get("/healthz")
    assert (health.status_code, health.text, health.headers["cache-control"]) == (200, "ok\n", "private, no-store")
    assert scene.catalog.requests == scene.orders.requests == []


async def test_a_websocket_goes_through_with_its_token(tmp_path: Path) -> None:
    seen = []

    async def echo(socket: ServerConnection) -> None:
        assert socket.request is not None
        seen.append((socket.request.path, socket.request.headers["Sec-WebSocket-Protocol"]))
        async for message in socket:
            await socket.send(message)
        await socket.close()

    async with serve(echo, "127.0.0.1", 0, subprotocols=[Subprotocol("orders.v1")]) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        async with running(tmp_path, {"realtime": port}) as edge:
            url = edge.edge.url.replace("http", "ws")
            offered = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{SECRET}")]
            async with connect(f"{url}/v1/stream", subprotocols=offered) as socket:
                assert socket.subprotocol == "orders.v1"
                for message in ("one", "x" * 300_000, b"two"):
                    await socket.send(message)
                    assert await socket.recv() == message
            with pytest.raises(InvalidStatus):
                await connect(f"{url}/v1/status", subprotocols=offered)
            assert seen == [("/v1/stream", f"orders.v1, bearer.{SECRET}")]
            await edge.settled(2)
            assert SECRET not in written(tmp_path)


async def test_no_secret_of_a_request_is_written_down_whether_it_succeeds_or_fails(
    scene: Scene, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {SECRET}", "Cookie": SECRET, "Referer": SECRET, "User-Agent": SECRET}
    paths = ("/v1/products", "/v1/orders", "/v1/status", "/v1/nothing", "/v1//nothing", "/v1/products/%2f")
    for path in paths:
        await scene.edge.get(f"{path}?access_token={SECRET}", **headers)
    await raw(scene, f"GET /v1/orders?x={SECRET} HTTP/1.1\r\nHost: {SECRET} {SECRET}\r\n\r\n".encode())
    lines = await scene.edge.settled(len(paths) + 2)
    assert SECRET not in written(tmp_path)
    (failed,) = [line for line in lines if line["path"] == "/v1/status"]
    assert (failed["status"], failed["upstream_status"]) == ("503", "502"), "a dead origin shows"
    assert {"time", "request_id", "client", "seconds", "cache", "upstream_seconds"} <= failed.keys()


def written(home: Path) -> str:
    """All that nginx has written to its logs."""
    files = [home / "edge" / "access.log", home / "log" / "edge.log"]
    return "".join(file.read_text() for file in files)
