"""Fan-out to WebSockets: `python -m loadtests.bench.realtime [--sockets 2000] [--seconds 10] [--rounds 3]`.

Three figures of one run with everything of `orders up` running:

1. From just before an order's commit to its event at a WebSocket client; orders are placed one after the other.
2. `--sockets` sockets, each following one of 200 orders, at 200 events a second in all: gaps and reorders (there are to
   be none), the delay from Kafka's producer to the client, and what a socket costs the gateway in memory.
3. Deliveries a second: 32 events of one order to every socket, ours and a bare `websockets` broadcast alternately.

The events of 2 and 3 are put on Kafka as the relay would: what is measured is the gateway. Clients are in this process.
"""

import argparse
import asyncio
import base64
import os
import secrets
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import psutil
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from services.cli.token import minted
from services.cli.up import any_product, prepare
from services.common.publisher import Publisher
from services.common.stream import Message
from services.contracts import envelope
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

ORDERS, RATE = 200, 200  # followed in all, events a second
LATENCY_ORDERS = 300
BURST = 32
BARE_PORT = 9  # offset from the stack's base
AT_ONCE = 50  # connections being opened


class Bench:
    """A stack, a buyer with orders, and the events that are made up for them."""

    def __init__(self, stack: Stack, publisher: Publisher) -> None:
        self.stack = stack
        self._publisher = publisher
        self.token = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:read orders:write", hours=2)
        self.url = f"{stack.endpoints['realtime']}/v1/stream"
        self.orders: list[str] = []
        self.versions: dict[str, int] = {}
        self._event: dict[str, object] = {}

    async def place(self, client: httpx.AsyncClient, product: str | None) -> str:
        """An order of one line."""
        body = {"currency": "USD", "items": [{"product_id": product, "quantity": 1}]}
        headers = {"Authorization": f"Bearer {self.token}", "Idempotency-Key": secrets.token_hex(8)}
        placed = (await client.post("/v1/orders", json=body, headers=headers)).raise_for_status().json()
        order_id: str = placed["order_id"]
        self.orders.append(order_id)
        self.versions[order_id] = 1
        return order_id

    async def learn(self, client: httpx.AsyncClient) -> None:
        """What an event looks like."""
        headers = {"Authorization": f"Bearer {self.token}"}
        path = f"/v1/orders/{self.orders[0]}/events"
        self._event = (await client.get(path, headers=headers)).raise_for_status().json()["data"][0]

    def made_up(self, order_id: str) -> Message:
        """The next event of the order, of now."""
        version = self.versions[order_id] = self.versions[order_id] + 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        event = self._event | {"order_id": order_id, "version": version, "occurred_at": now}
        headers = envelope.headers(
            event_id=str(event["event_id"]),
            type_=str(event["type"]),
            source=envelope.ORDERS_SOURCE,
            subject=order_id,
            time=now,
            version=version,
            traceparent=None,
        )
        return Message(order_id.encode(), orjson.dumps(event), headers)

    async def publish(self, messages: Sequence[Message]) -> None:
        """They are on Kafka."""
        await self._publisher.publish(envelope.ORDERS_TOPIC, messages)

    async def follow(self, order_id: str) -> ClientConnection:
        """A socket that follows the order from where it is now."""
        protocols = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{self.token}")]
        socket = await connect(self.url, subprotocols=protocols, compression=None, ping_interval=None)
        wanted = {"order_id": order_id, "after_version": self.versions[order_id]}
        await socket.send(orjson.dumps({"subscribe": wanted}).decode())
        if "subscribed" not in orjson.loads(await socket.recv()):
            raise SystemExit("the run is void: a subscription was refused")
        return socket


def told(seconds: Sequence[float]) -> str:
    """Percentiles in milliseconds."""
    ordered = sorted(seconds)
    at = {
        name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in (("p50", 0.5), ("p99", 0.99))
    }
    return f"p50 {at['p50'] * 1000:.1f} ms, p99 {at['p99'] * 1000:.1f} ms, max {ordered[-1] * 1000:.1f} ms"


def age(event: dict[str, str]) -> float:
    """Seconds since the event's time, which is cut to the millisecond."""
    return time.time() - datetime.fromisoformat(event["occurred_at"]).timestamp()


async def latency(bench: Bench, client: httpx.AsyncClient, product: str | None) -> None:
    """Figure 1."""
    protocols = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{bench.token}")]
    found = []
    async with connect(bench.url, subprotocols=protocols, compression=None) as socket:
        await socket.send('{"subscribe": {"all": true}}')
        await socket.recv()
        for number in range(LATENCY_ORDERS):
            placing = asyncio.create_task(bench.place(client, product))
            event = orjson.loads(await socket.recv())
            found.append(age(event))
            if event["order_id"] != await placing:
                raise SystemExit("the run is void: an event of another order came")
            await asyncio.sleep(0.003 * (number % 20))  # so that the relay's pauses are met at any time
    sys.stdout.write(f"1. before commit -> client, {len(found)} orders: {told(found)}\n")


async def fan_out(bench: Bench, sockets: int, seconds: int) -> None:
    """Figure 2."""
    process = psutil.Process(bench.stack.pid("realtime-gateway") or 0)
    before, turns = process.memory_info().rss, asyncio.Semaphore(AT_ONCE)

    async def opened(number: int) -> ClientConnection:
        async with turns:
            return await bench.follow(bench.orders[number % ORDERS])

    started = time.monotonic()
    clients = await asyncio.gather(*(opened(number) for number in range(sockets)))
    opening = time.monotonic() - started
    opened_bytes = (process.memory_info().rss - before) / sockets
    delays: list[float] = []
    faults = 0
    ends = dict.fromkeys(bench.orders[:ORDERS], 1 + RATE * seconds // ORDERS)

    async def read(number: int, client: ClientConnection) -> None:
        nonlocal faults
        order_id, last = bench.orders[number % ORDERS], 1
        while last < ends[order_id]:
            event = orjson.loads(await client.recv())
            faults += event["version"] != last + 1 or event["order_id"] != order_id
            last = event["version"]
            delays.append(age(event))

    readers = [asyncio.create_task(read(number, client)) for number, client in enumerate(clients)]
    cpu, started = process.cpu_times(), time.monotonic()
    for number in range(RATE * seconds):
        await bench.publish([bench.made_up(bench.orders[number % ORDERS])])
        await asyncio.sleep(max(0.0, started + (number + 1) / RATE - time.monotonic()))
    publishing = time.monotonic() - started
    await asyncio.wait_for(asyncio.gather(*readers), 60)
    used = process.cpu_times()
    busy = used.user + used.system - cpu.user - cpu.system
    peak = (process.memory_info().rss - before) / sockets
    sys.stdout.write(
        f"2. {sockets} sockets opened and subscribed in {opening:.1f} s; {RATE * seconds / publishing:.0f} events/s,"
        f" {len(delays)} deliveries, {faults} gaps or reorders; producer -> client: {told(delays)};"
        f" {opened_bytes / 1024:.1f} KB a socket when open, {peak / 1024:.1f} KB after the run;"
        f" {busy / len(delays) * 1e6:.0f} us of CPU a delivery\n"
    )
    await asyncio.gather(*(client.close() for client in clients))


class Counting(asyncio.Protocol):
    """A WebSocket client that counts bytes and nothing more, so that it is not the limit."""

    def __init__(self, port: int, path: str, token: str, subscription: bytes) -> None:
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(secrets.token_bytes(16)).decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: orders.v1, bearer.{token}\r\n\r\n"
        ).encode()
        self._subscription = subscription
        self._opening = b""
        self._wanted = 0
        self.ready = asyncio.get_running_loop().create_future()
        self.done = self.ready
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask to be upgraded."""
        self.transport = transport
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Subscribe after the handshake; count what comes after its answer."""
        if self.ready.done():
            self._wanted -= len(data)
            if self._wanted <= 0 and not self.done.done():
                self.done.set_result(None)
            return
        self._opening += data
        head, found, answer = self._opening.partition(b"\r\n\r\n")
        if found and head.startswith(b"HTTP/1.1 101"):
            if self._subscription and not answer:
                self.transport.write(self._subscription)
            elif not self._subscription or answer.endswith(b"}}"):
                self.ready.set_result(None)

    def expect(self, size: int) -> "asyncio.Future[None]":
        """Done when so many further bytes have come."""
        self._wanted, self.done = size, asyncio.get_running_loop().create_future()
        return self.done


def masked(text: bytes) -> bytes:
    """A client's text frame of 126 bytes or less (RFC 6455, section 5.2), its mask being zero."""
    return b"\x81" + bytes([0x80 | len(text)]) + bytes(4) + text


def on_the_wire(frame: bytes) -> int:
    """Bytes of a server's frame."""
    return len(frame) + (2 if len(frame) < 126 else 4 if len(frame) < 65_536 else 10)


async def counting(port: int, path: str, token: str, subscription: bytes, sockets: int) -> list[Counting]:
    """As many clients, ready."""
    loop, turns = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)

    async def one() -> Counting:
        async with turns:
            _, client = await loop.create_connection(
                lambda: Counting(port, path, token, subscription), "127.0.0.1", port
            )
            await asyncio.wait_for(client.ready, 60)
            return client

    return await asyncio.gather(*(one() for _ in range(sockets)))


async def connected(url: str) -> ClientConnection:
    """A client of a server that is about to listen."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await connect(url, subprotocols=[Subprotocol("orders.v1")], compression=None)
            except OSError:
                await asyncio.sleep(0.1)


async def deliveries(bench: Bench, sockets: int, rounds: int) -> None:
    """Figure 3."""
    order_id, port = bench.orders[0], bench.stack.settings.port(BARE_PORT)
    bare = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).with_name("bare_broadcast.py")), str(port)
    )
    try:
        control = await connected(f"ws://127.0.0.1:{port}")
        following = {"order_id": order_id, "after_version": bench.versions[order_id]}
        subscription = masked(orjson.dumps({"subscribe": following}))
        gateway = urlsplit(bench.url)
        clients = {
            "ours": await counting(gateway.port or 0, gateway.path, bench.token, subscription, sockets),
            "bare": await counting(port, "/", bench.token, b"", sockets),
        }
        pids = {"ours": bench.stack.pid("realtime-gateway") or 0, "bare": bare.pid}

        last: list[Message] = []  # of ours; the bare one broadcasts the newest of them

        async def burst(who: str) -> tuple[float, float]:
            """Deliveries a second, and microseconds of CPU for each."""
            nonlocal last
            if who == "ours":
                last = [bench.made_up(order_id) for _ in range(BURST)]
            messages = last if who == "ours" else last[-1:] * BURST
            size = sum(on_the_wire(message.value) for message in messages)
            all_there = asyncio.gather(*(client.expect(size) for client in clients[who]))
            process = psutil.Process(pids[who])
            before, began = process.cpu_times(), time.monotonic()
            if who == "ours":
                await bench.publish(messages)
            else:
                wanted = {"frame": messages[0].value.decode(), "times": BURST}
                await control.send(orjson.dumps(wanted).decode())
            await asyncio.wait_for(all_there, 120)
            elapsed, after = time.monotonic() - began, process.cpu_times()
            used = after.user + after.system - before.user - before.system
            return BURST * sockets / elapsed, used / (BURST * sockets) * 1e6

        ratios = []
        for number in range(rounds):
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
            for who in ("ours", "bare", "bare", "ours"):
                found[who].append(await burst(who))
            rate, cpu = (
                {who: statistics.mean(pair[part] for pair in pairs) for who, pairs in found.items()} for part in (0, 1)
            )
            ratios.append(rate["ours"] / rate["bare"])
            sys.stdout.write(
                f"3. round {number + 1}: ours {rate['ours']:.0f} deliveries/s, {cpu['ours']:.1f} us of CPU each;"
                f" bare {rate['bare']:.0f}/s, {cpu['bare']:.1f} us; ratio {ratios[-1]:.3f}\n"
            )
        spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
        sys.stdout.write(f"3. median ratio {statistics.median(ratios):.3f} ({spread}, {rounds} rounds A B B A)\n")
        for client in (*clients["ours"], *clients["bare"]):
            client.transport.abort()
        await control.close()
    finally:
        bare.terminate()
        await bare.wait()


@asynccontextmanager
async def started() -> AsyncIterator[Bench]:
    """Everything, in a home of its own."""
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base())
        async with (
            Stack(settings, prepare=prepare) as stack,
            Publisher(stack.addresses.kafka, client_id="bench") as publisher,
        ):
            yield Bench(stack, publisher)


async def main(sockets: int, seconds: int, rounds: int) -> None:
    """Run and print."""
    os.environ["ORDERS_PING_SECONDS"] = "3600"  # clients that only count answer no ping
    async with started() as bench, httpx.AsyncClient(base_url=str(bench.stack.endpoints["orders"])) as client:
        product = await any_product(bench.stack.addresses.postgres)
        for _ in range(ORDERS):
            await bench.place(client, product)
        await bench.learn(client)
        await latency(bench, client, product)
        await fan_out(bench, sockets, seconds)
        await deliveries(bench, sockets, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=2_000)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.sockets, arguments.seconds, arguments.rounds))
