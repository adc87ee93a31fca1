"""Three Valkeys that are one cluster, of which slots can be moved from one to another while it is used."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.conftest import free_port
from tests.faults.valkey import Server, serving
from tests.faults.waiting import eventually

SLOTS = 16_384
NODES = 3


@dataclass
class Node:
    """One of them, and a client of it alone."""

    server: Server
    redis: Redis
    bus_port: int
    id: bytes = b""

    async def ask(self, *command: str | bytes | int) -> Any:
        """What it answers."""
        return await self.redis.execute_command(*command)  # type: ignore[no-untyped-call]

    async def joined(self) -> bool:
        """It knows all others, and who has which slot."""
        state = await self.ask("CLUSTER INFO")
        return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == NODES


@dataclass
class Cluster:
    """Primaries only."""

    nodes: list[Node]

    @property
    def url(self) -> str:
        """Of one of them; the others are found."""
        return self.nodes[0].server.valkey.url.replace("redis://", "redis-cluster://")

    async def move(self, slot: int, source: Node, target: Node, half_way: Callable[[], Awaitable[None]]) -> None:
        """The slot has moved, key by key, as redis-cli --cluster reshard does it (Valkey: CLUSTER SETSLOT).

        `half_way` runs while the slot is nobody's alone.
        """
        await target.ask("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
        await source.ask("CLUSTER SETSLOT", slot, "MIGRATING", target.id)
        await half_way()
        while keys := await source.ask("CLUSTER GETKEYSINSLOT", slot, 100):
            port = target.server.valkey.port
            await source.ask("MIGRATE", "127.0.0.1", port, "", 0, 5_000, "KEYS", *keys)
        for node in (target, source, *self.nodes):
            await node.ask("CLUSTER SETSLOT", slot, "NODE", target.id)


@asynccontextmanager
async def clustered(directory: Path) -> AsyncIterator[Cluster]:
    """One that answers for every slot."""
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(NODES):
            bus_port = free_port()
            flags = ("--cluster-enabled", "yes", "--cluster-port", str(bus_port))
            server = await stack.enter_async_context(serving(directory / str(number), *flags))
            redis = await stack.enter_async_context(Redis.from_url(server.valkey.url))
            nodes.append(Node(server, redis, bus_port))
        for number, node in enumerate(nodes):
            node.id = await node.ask("CLUSTER MYID")
            first, after = number * SLOTS // NODES, (number + 1) * SLOTS // NODES
            await node.ask("CLUSTER ADDSLOTSRANGE", first, after - 1)
            await node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            address = ("127.0.0.1", node.server.valkey.port, node.bus_port)
            await nodes[0].ask("CLUSTER MEET", *address)
        for node in nodes:
            await eventually(node.joined, "the cluster is whole")
        yield Cluster(nodes)
