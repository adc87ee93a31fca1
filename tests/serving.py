"""Servers in the process of the tests."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from services.common import server
from services.common.server import SocketLimits


@asynccontextmanager
async def serving(app: ASGIApp, limits: SocketLimits | None = None, port: int = 0) -> AsyncIterator[int]:
    """`app` as a process serves it, until SIGTERM; gives its port."""
    config = server.configuration(app, "127.0.0.1", port, limits)
    async with serving_as(config, server.listener(config, limits)) as served:
        yield served


def listening() -> tuple[socket.socket, str]:
    """A socket on a free port, and the URL of whoever will serve there."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener, f"http://127.0.0.1:{listener.getsockname()[1]}"


@asynccontextmanager
async def serving_as(config: uvicorn.Config, listener: socket.socket) -> AsyncIterator[int]:
    """Whatever is configured; gives the port. AssertionError when it cannot start."""
    uvicorn_server = uvicorn.Server(config)
    task = asyncio.create_task(_served(uvicorn_server, listener))
    while not uvicorn_server.started:
        if task.done():
            await task
        await asyncio.sleep(0.01)
    try:
        yield listener.getsockname()[1]
    finally:
        uvicorn_server.should_exit = True
        await task


async def _served(uvicorn_server: uvicorn.Server, listener: socket.socket) -> None:
    try:
        await uvicorn_server.serve(sockets=[listener])
    except SystemExit as ended:  # out of the loop it would end a fixture half-way, and later tests would share it
        raise AssertionError("the server could not start: its log says why") from ended
