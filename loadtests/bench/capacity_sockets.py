"""What a WebSocket costs: its memory in the gateway, and each event that is sent to it."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final

import orjson
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from loadtests.bench.capacity_buyers import Buyers
from loadtests.bench.capacity_meter import memory_bytes
from loadtests.bench.measure import VoidError

if TYPE_CHECKING:
    from loadtests.bench.capacity_run import Run

GATEWAY: Final = "realtime-gateway"
COMES_WITHIN_SECONDS: Final = 60.0
EVENTS: Final = 50  # each to every socket


async def measured(run: "Run") -> dict[str, float]:
    """Bytes of a socket, and CPU microseconds of the gateway for each event and socket beyond those of the event."""
    buyer = Buyers(run.buyers.client, run.buyers.settings, run.buyers.users[:1], run.buyers.products)
    url, token = f"{run.stack.endpoints['realtime']}/v1/stream", buyer.token(0)
    pid = run.stack.pid(GATEWAY) or 0
    before = memory_bytes(pid)["private"]
    async with AsyncExitStack() as ending:
        sockets = []
        for _ in range(run.plan.sockets):
            protocols = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{token}")]
            socket = await ending.enter_async_context(connect(url, subprotocols=protocols, compression=None))
            await socket.send('{"subscribe": {"all": true}}')
            if "subscribed" not in orjson.loads(await socket.recv()):
                raise VoidError("a subscription was refused")
            sockets.append(socket)
        grown = memory_bytes(pid)["private"] - before

        async def place(numbers: Sequence[int]) -> None:
            async with asyncio.timeout(COMES_WITHIN_SECONDS), asyncio.TaskGroup() as group:
                for socket in sockets:
                    group.create_task(_received(socket, len(numbers)))
                group.create_task(buyer.place(len(numbers)))

        await run.measure("place, followed", range(EVENTS), place)
    followed, alone = (run.operations[name].get(f"cpu {GATEWAY}", 0.0) for name in ("place, followed", "place"))
    return {"bytes": grown / len(sockets), "us": (followed - alone) * 1e6 / len(sockets), "sockets": len(sockets)}


async def _received(socket: ClientConnection, events: int) -> None:
    """So many have come."""
    for _ in range(events):
        await socket.recv()
