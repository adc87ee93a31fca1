"""What a Valkey or Redis tells of its keys as they are set (its manual: Keyspace notifications), one server a channel.

The servers must have `K$` in `notify-keyspace-events`. One connection speaks RESP3, so that what is heard and what is
asked come over the same wire, in the order in which the server has done it.
"""

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import ConnectionPool, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

from services.contracts.cache import Kind

SLOTS: Final = 16_384  # of a cluster (its specification)
BEAT_MS: Final = 1_000  # how long the key of a heartbeat is there


@dataclass(frozen=True, slots=True)
class Beat:
    """All that was set on the server before the last `beat` has been heard. `server_ms` is its clock, then or later."""

    server_ms: int


class Channel(Protocol):
    """Hears one server. All of it may fail in any way the driver knows; the channel is of no use any more then."""

    async def beat(self) -> None:
        """A heartbeat was sent. The one before it has been heard."""

    async def hear(self) -> str | Beat:
        """The name of a fence that was set, or the heartbeat: in the order in which the server has done it."""

    async def close(self) -> None:
        """It is not connected."""


Connect = Callable[[], Awaitable[Sequence[Channel]]]


class MovedError(Exception):
    """The cluster is not what it was: who has which slot has changed, or is about to."""


class ValkeyChannel:
    """See `Channel`."""

    def __init__(self, url: str, kinds: Iterable[Kind]) -> None:
        # No time-outs here, as in `cache_valkey`: whoever calls has a deadline for all of it.
        self._pool = ConnectionPool.from_url(
            url, protocol=3, retry=Retry(NoBackoff(), 0), socket_timeout=None, socket_connect_timeout=None
        )
        self._prefix = f"__keyspace@{self._pool.connection_kwargs.get('db') or 0}__:"
        self._patterns = [f"{self._prefix}{kind.prefix}:f:*" for kind in kinds]
        self._key = f"cache:beat:{{{secrets.token_hex(8)}}}"
        self._connection: AbstractConnection | None = None
        self._replies: list[Any] = []
        self._seen = False

    async def open(self) -> None:
        """Whatever is set from the first heartbeat on is heard. That the server agrees is told by the heartbeat."""
        self._connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        await self._greet()
        await self._send(("SUBSCRIBE", self._prefix + self._key), ("PSUBSCRIBE", *self._patterns))

    async def beat(self) -> None:
        """See `Channel`."""
        await self._send(("SET", self._key, 1, "PX", BEAT_MS), *self._questions)

    async def hear(self) -> str | Beat:
        """See `Channel`."""
        while True:
            match await self._read():
                case [b"pmessage", _, bytes(channel), _]:
                    return channel[len(self._prefix) :].decode(errors="replace")
                case [b"message", _, bytes(event)]:
                    self._seen = self._seen or event == b"set"
                case [b"subscribe" | b"psubscribe", *_]:
                    continue
                case reply:
                    self._replies.append(reply)
            if self._seen and len(self._replies) > len(self._questions):
                (_, *answers), self._replies, self._seen = self._replies, [], False
                return self._beaten(*answers)

    async def close(self) -> None:
        """See `Channel`."""
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    # Asked after the heartbeat's own key was set.
    _questions: tuple[tuple[str, ...], ...] = (("TIME",),)

    async def _greet(self) -> None:
        """What has to be known of the server before anything is heard of it."""

    def _beaten(self, time: Sequence[bytes], *_: Any) -> Beat:
        seconds, microseconds = time
        return Beat(int(seconds) * 1000 + int(microseconds) // 1000)

    async def _send(self, *commands: tuple[str | int, ...]) -> None:
        assert self._connection is not None  # noqa: S101  it was opened
        await self._connection.send_packed_command(self._connection.pack_commands(commands), check_health=False)

    async def _read(self) -> Any:
        assert self._connection is not None  # noqa: S101  it was opened
        return await self._connection.read_response(timeout=math.inf, push_request=True)


class PrimaryChannel(ValkeyChannel):
    """One primary of a cluster. MovedError once it is not what it was.

    What it says of itself is asked for after each heartbeat: as long as that is the same, every fence of its slots that
    was set before the heartbeat was set here, and heard.
    """

    _questions = (("TIME",), ("CLUSTER", "NODES"))
    itself: "Primary"

    async def _greet(self) -> None:
        await self._send(("CLUSTER", "NODES"))
        self.itself = primary(await self._read())
        mine = self.itself.slots
        # A name of its own slots, so that it is here that it is set.
        tag = next((tag for tag in map(str, range(100 * SLOTS)) if key_slot(tag.encode()) in mine), None)
        if tag is None:
            raise MovedError("a primary has no slots")
        self._key = f"cache:beat:{{{tag}}}:{secrets.token_hex(8)}"

    def _beaten(self, time: Sequence[bytes], *rest: Any) -> Beat:
        now = primary(*rest)
        if now != self.itself:
            raise MovedError(f"a primary was {self.itself.line!r} and is {now.line!r}")
        return super()._beaten(time)


@dataclass(frozen=True, slots=True)
class Primary:
    """What a node of a cluster says of itself: its flags, the epoch of its slots, the slots."""

    line: str

    @property
    def slots(self) -> frozenset[int]:
        """That it has. MovedError while it gives or takes one: its keys are in two places then."""
        slots: set[int] = set()
        for part in self.line.split()[2:]:
            if part.startswith("["):
                raise MovedError(f"a slot is being moved: {part}")
            first, _, last = part.partition("-")
            slots.update(range(int(first), int(last or first) + 1))
        return frozenset(slots)


def primary(nodes: bytes) -> Primary:
    """Of the answer to CLUSTER NODES: id, address, flags, primary, ping, pong, epoch, link, slots, for each node."""
    own = next(fields for line in nodes.decode().splitlines() if "myself" in (fields := line.split())[2].split(","))
    return Primary(" ".join((own[2], own[6], *own[8:])))


def one_server(url: str, kinds: Sequence[Kind]) -> Connect:
    """To the server at `url`."""

    async def connect() -> list[Channel]:
        return await _opened([ValkeyChannel(url, kinds)])

    return connect


def all_primaries(url: str, kinds: Sequence[Kind]) -> Connect:
    """To all of the cluster of which `url` is a node. MovedError when they do not have all slots between them."""
    url = url.replace("-cluster:", ":", 1)

    async def connect() -> list[Channel]:
        async with RedisCluster.from_url(
            url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 0)
        ) as cluster:
            nodes = [(node.host, int(node.port)) for node in cluster.get_primaries()]
        channels = [PrimaryChannel(_at(url, host, port), kinds) for host, port in nodes]
        opened = await _opened(channels)
        if len(frozenset[int]().union(*(channel.itself.slots for channel in channels))) != SLOTS:
            await _closed(channels)
            raise MovedError("the primaries do not say that they have all slots")
        return opened

    return connect


async def _opened(channels: Sequence[ValkeyChannel]) -> list[Channel]:
    try:
        await asyncio.gather(*(channel.open() for channel in channels))
    except BaseException:
        await _closed(channels)
        raise
    return list(channels)


async def _closed(channels: Sequence[Channel]) -> None:
    for channel in channels:
        await channel.close()


def _at(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    who = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{who[0]}{who[1]}{f'[{host}]' if ':' in host else host}:{port}"))
