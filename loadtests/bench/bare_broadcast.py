"""The limit: a bare `websockets` server on uvloop that broadcasts what it is told: `python bare_broadcast.py PORT`.

A client that sends `{"frame": text, "times": n}` has it broadcast to all others, n times.
"""

import asyncio
import sys

import orjson
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.typing import Subprotocol

listeners: set[ServerConnection] = set()


async def handle(connection: ServerConnection) -> None:
    """One client."""
    listeners.add(connection)
    try:
        async for message in connection:
            listeners.discard(connection)
            told = orjson.loads(message)
            for _ in range(told["times"]):
                broadcast(listeners, told["frame"])
                await asyncio.sleep(0)  # as a server has to that does anything besides
    finally:
        listeners.discard(connection)


async def main(port: int) -> None:
    """Until it is ended."""
    async with serve(
        handle, "127.0.0.1", port, compression=None, ping_interval=None, subprotocols=[Subprotocol("orders.v1")]
    ) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
