"""Three Valkeys that are one cluster, of which slots can be moved from one to another while it is used."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
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

    async def meet(self, other: "Node") -> None:
        """They will know each other."""
        await self.ask("CLUSTER MEET", "127.0.0.1", other.server.valkey.port, other.bus_port)

    async def joined(self, nodes: int = NODES) -> bool:
        """It knows all others, and who has which slot."""
        state = await self.ask("CLUSTER INFO")
        return state["cluster_state"] == "ok" and int(state["cluster_known_nodes"]) == nodes


@dataclass
class Cluster:
    """Primaries only."""

    nodes: list[Node]
    directory: Path
    stack: AsyncExitStack

    async def grow(self) -> Node:
        """A primary more, that has no slot yet."""
        node = await begun(self.stack, self.directory / str(len(self.nodes)))
        await self.nodes[0].meet(node)
        self.nodes.append(node)
        for each in self.nodes:
            await eventually(partial(each.joined, len(self.nodes)), "all know the new one")
        return node

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
        nodes = [await begun(stack, directory / str(number)) for number in range(NODES)]
        for number, node in enumerate(nodes):
            first, after = number * SLOTS // NODES, (number + 1) * SLOTS // NODES
            await node.ask("CLUSTER ADDSLOTSRANGE", first, after - 1)
            await node.ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
        for node in nodes[1:]:
            await nodes[0].meet(node)
        for node in nodes:
            await eventually(node.joined, "the cluster is whole")
        yield Cluster(nodes, directory, stack)


async def begun(stack: AsyncExitStack, directory: Path) -> Node:
    """One that knows no other."""
    bus_port = free_port()
    flags = ("--cluster-enabled", "yes", "--cluster-port", str(bus_port))
    server = await stack.enter_async_context(serving(directory, *flags))
    redis = await stack.enter_async_context(Redis.from_url(server.valkey.url))
    node = Node(server, redis, bus_port)
    node.id = await node.ask("CLUSTER MYID")
    return node
