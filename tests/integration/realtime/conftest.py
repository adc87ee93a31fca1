"""A gateway between a real Kafka and a real orders-api; what is on Kafka, and how often, is the test's to say."""

import asyncio
import secrets
import socket
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import orjson
import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from services.common import stream
from services.common.publisher import Publisher
from services.common.stream import Message
from services.contracts import envelope
from services.orders import api as orders_api
from services.orders.settings import OrdersSettings
from services.realtime import api
from services.realtime.endpoints import Context
from services.realtime.settings import RealtimeSettings
from tests.faults.waiting import eventually
from tests.serving import serving
from tests.shop import Shop

COMES_WITHIN_SECONDS = 60.0
ALL = "orders:read orders:read:any"

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@dataclass
class Client:
    """A WebSocket client that remembers what it was told."""

    socket: ClientConnection
    had: defaultdict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    events: list[dict[str, Any]] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    async def ask(self, **what: Any) -> None:
        """One message."""
        await self.socket.send(orjson.dumps(what).decode())

    async def take(self) -> dict[str, Any]:
        """The next message, event or not."""
        message: dict[str, Any] = orjson.loads(await asyncio.wait_for(self.socket.recv(), COMES_WITHIN_SECONDS))
        if "version" in message:
            self.had[message["order_id"]].append(message["version"])
            self.events.append(message)
        else:
            self.told.append(message)
        return message

    async def answered(self, **what: Any) -> dict[str, Any]:
        """What is told next after asking; events may come before it."""
        await self.ask(**what)
        while "version" in (message := await self.take()):
            pass
        return message

    async def until(self, order_id: str, version: int) -> list[int]:
        """The versions of the order that have come, once `version` is among them."""
        while version not in self.had[order_id]:
            await self.take()
        return self.had[order_id]

    async def closed(self) -> int | None:
        """The close code, after whatever comes before it."""
        try:
            while True:
                await self.take()
        except ConnectionClosed:
            return self.socket.close_code


@dataclass
class Gateway:
    """A gateway, and how to connect to it."""

    port: int
    shop: Shop
    at: Context
    clients: list[ClientConnection] = field(default_factory=list)

    async def client(self, token: str | None = None, *protocols: str, **options: Any) -> Client:
        """Connected with that token, the buyer's by default."""
        bearer = self.shop.token("orders:read") if token is None else token
        offered = [Subprotocol(one) for one in protocols or ("orders.v1", f"bearer.{bearer}")]
        url = f"ws://127.0.0.1:{self.port}/v1/stream"
        self.clients.append(await connect(url, subprotocols=offered, max_size=None, compression=None, **options))
        return Client(self.clients[-1])


@dataclass
class Wire:
    """Puts events of orders on Kafka, as the relay does but when, in which order and how often the test says."""

    topic: str
    shop: Shop
    publisher: Publisher
    published: int = 0

    async def publish(self, order_id: str, *versions: int) -> None:
        """Those versions, as orders-api has them."""
        path = f"/v1/orders/{order_id}/events"
        answer = await self.shop.client.get(path, params={"limit": 1000}, headers=self.shop.auth(ALL))
        stored = {event["version"]: event for event in answer.json()["data"]}
        await self.send(
            *(self.message(order_id, version, orjson.dumps(stored[version]), stored[version]) for version in versions)
        )

    def message(self, order_id: str, version: int, value: bytes, event: dict[str, Any]) -> Message:
        """As it is on Kafka."""
        headers = envelope.headers(
            event_id=event.get("event_id", ""),
            type_=event.get("type", ""),
            source=envelope.ORDERS_SOURCE,
            subject=order_id,
            time=event.get("occurred_at", ""),
            version=version,
            traceparent=None,
        )
        return Message(order_id.encode(), value, headers)

    async def send(self, *messages: Message) -> None:
        """These, whatever they are."""
        await self.publisher.publish(self.topic, messages)
        self.published += len(messages)

    async def read_by(self, gateway: Gateway) -> None:
        """The gateway has handled all of it."""

        async def all_of_it() -> bool:
            return sum(gateway.at.follower._positions.values()) >= self.published

        await eventually(all_of_it, "everything was read")


@pytest.fixture
async def orders_port(orders_settings: OrdersSettings) -> AsyncIterator[int]:
    """orders-api as it is run."""
    async with serving(orders_api.create_app(orders_settings)) as port:
        yield port


@pytest.fixture
async def shop(
    orders_port: int, orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner
) -> AsyncIterator[Shop]:
    """Somebody who uses it."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{orders_port}", timeout=30) as client:
        yield Shop(client, orders_settings, issuer[0], owner)


@pytest.fixture
async def wire(kafka_url: str, shop: Shop) -> AsyncIterator[Wire]:
    """A topic of the test's own."""
    topic = f"test.{secrets.token_hex(4)}"
    await stream.ensure_topic(kafka_url, topic)
    async with Publisher(kafka_url, client_id="test") as publisher:
        yield Wire(topic, shop, publisher)


Open: TypeAlias = Callable[..., AbstractAsyncContextManager[Gateway]]


@pytest.fixture
def opened(kafka_url: str, shop: Shop, wire: Wire, orders_port: int) -> Open:
    """Call with settings for a gateway that has them."""

    @asynccontextmanager
    async def open_(port: int = 0, **settings: Any) -> AsyncIterator[Gateway]:
        chosen = RealtimeSettings(
            **{
                "kafka_url": kafka_url,
                "issuer_url": shop.settings.issuer_url,
                "audience": shop.settings.audience,
                "orders_url": f"http://127.0.0.1:{orders_port}",
                **settings,
            }
        )
        app = api.create_app(chosen, wire.topic)
        async with serving(app, api.limits(chosen), port) as served:
            at: Context = app.http.fastapi.state.context  # type: ignore[attr-defined] # an Application
            gateway = Gateway(served, shop, at)
            if "kafka_url" not in settings:

                async def ready() -> bool:
                    return at.follower.placed

                await eventually(ready, "its positions are known")
            yield gateway
        await asyncio.gather(*(one.close() for one in gateway.clients))

    return open_


@pytest.fixture
async def gateway(opened: Open) -> AsyncIterator[Gateway]:
    """One with the usual settings."""
    async with opened() as one:
        yield one


def narrow_socket(port: int) -> socket.socket:
    """Connected, and taking very little before it is read."""
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.connect(("127.0.0.1", port))
    narrow.setblocking(False)
    return narrow


class Exported:
    """Metrics of a process, as Prometheus' own client serves them."""

    def __init__(self, process: str, port: int) -> None:
        self._registry = CollectorRegistry()
        self._gauge("process_info", "process").labels(process).set(1)
        names = ("outbox_depth", "outbox_oldest_age_seconds", "outbox_parked_aggregates")
        self._outboxes = [self._gauge(name, "outbox") for name in names]
        self._breakers = self._gauge("breaker_state", "breaker")
        self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=self._registry)
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def outboxes(self, name: str, *values: float) -> None:
        """Depth, age and parked aggregates of one."""
        for gauge, value in zip(self._outboxes, values, strict=True):
            gauge.labels(name).set(value)

    def breakers(self, **states: int) -> None:
        """The states of some."""
        for name, state in states.items():
            self._breakers.labels(name).set(state)

    def close(self) -> None:
        """It does not answer any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge(self, name: str, label: str) -> Gauge:
        return Gauge(name, name, [label], registry=self._registry)


@contextmanager
def exporting(process: str, port: int = 0) -> Iterator[Exported]:
    """Until the end of the block."""
    exported = Exported(process, port)
    try:
        yield exported
    finally:
        exported.close()
