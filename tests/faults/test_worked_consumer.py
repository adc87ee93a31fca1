"""The consumer of docs/consuming.md, as it stands there, on a whole stack: the document cannot rot."""

import asyncio
import os
import re
import secrets
import signal
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import orjson
import pytest

from services.cli import up
from services.common import clock, ids
from services.common.stream import Message
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.keys import DEVELOPMENT_CLIENT, clients, mint
from services.embedded.room import free_port_base
from services.embedded.settings import METRICS, StackSettings
from services.embedded.supervisor import Stack
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually
from tests.product_events import publish
from tests.shop import AUDIENCE

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
DOCUMENT = Path(__file__).parents[2] / "docs" / "consuming.md"
ORDERS = Path(sys.executable).with_name("orders")
LINES = 2_000  # the most an order may have
NAME = "\U0001fad6" * 200  # the longest: 200 teapots, 800 bytes


def _block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@dataclass
class Shop:
    """A stack with the document's consumer on it."""

    stack: Stack
    owner: Owner
    client: httpx.AsyncClient
    consumer: asyncio.subprocess.Process
    metrics_port: int

    def headers(self, scope: str) -> dict[str, str]:
        where = self.stack.addresses
        token = mint(
            self.stack.settings.home, issuer=where.issuer, audience=AUDIENCE, sub=str(uuid.uuid4()), scope=scope
        )
        return {"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)}

    async def products(self, count: int, name: str = "Thing") -> list[str]:
        """New ones, with stock."""
        made = [ids.new_id(clock.now()) for _ in range(count)]
        await self.owner.execute(
            "WITH product AS (INSERT INTO orders.products (product_id, name, price, currency, active, version)"
            " SELECT unnest($1::uuid[]), $2, 100, 'USD', true, 1 RETURNING product_id)"
            " INSERT INTO orders.inventory (product_id, on_hand, reserved, version)"
            " SELECT product_id, 1000, 0, 1 FROM product",
            *(made, name),
        )
        return [ids.to_text(product_id) for product_id in made]

    async def place(self, *products: str, quantity: int = 1) -> dict[str, Any]:
        body = {"currency": "USD", "items": [{"product_id": p, "quantity": quantity} for p in products]}
        response = await self.client.post("/v1/orders", json=body, headers=self.headers("orders:write"))
        assert response.status_code == 201, response.text
        order: dict[str, Any] = response.json()
        return order

    async def ordered(self, products: list[str], units: int, *, seconds: float = 30) -> None:
        """The consumer's table says so of each."""

        async def told() -> bool:
            rows = await self.owner.fetch("SELECT units FROM demand.units WHERE product_id = ANY($1)", products)
            return [row["units"] for row in rows] == [units] * len(products)

        await eventually(told, f"{units} units of each", seconds=seconds)
        assert self.consumer.returncode is None

    async def metric(self, line: str) -> float:
        """A sample of the consumer's."""
        async with httpx.AsyncClient(timeout=30) as client:
            text = (await client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")).text
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    async def orders_command(self, *arguments: str) -> list[dict[str, Any]]:
        """What `orders` with these arguments and --json prints."""
        settings = self.stack.settings
        own = {"ORDERS_HOME": str(settings.home), "ORDERS_PORT_BASE": str(settings.port_base)}
        process = await asyncio.create_subprocess_exec(
            *(str(ORDERS), *arguments, "--json"), env={**os.environ, **own}, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        return [orjson.loads(line) for line in out.splitlines()]


@pytest.fixture(scope="module")
async def shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Shop]:
    settings = StackSettings(home=tmp_path_factory.mktemp("worked"), port_base=free_port_base())
    async with Stack(settings, prepare=up.prepare) as stack:
        owner = await asyncpg.connect(stack.addresses.postgres)
        await owner.execute(_block("sql"))
        script = settings.home / "demand.py"
        script.write_text(_block("python"))
        metrics_port = settings.port(METRICS + 90)
        told = {
            "ORDERS_POSTGRES_URL": stack.addresses.postgres,
            "ORDERS_KAFKA_URL": stack.addresses.kafka,
            "ORDERS_ISSUER_URL": stack.addresses.issuer,
            "ORDERS_ORDERS_URL": str(stack.endpoints["orders"]),
            "ORDERS_CLIENT_ID": DEVELOPMENT_CLIENT,
            "ORDERS_CLIENT_SECRET": clients(settings.home)[DEVELOPMENT_CLIENT],
            "ORDERS_METRICS_PORT": str(metrics_port),
        }
        with (settings.home / "log" / "demand.log").open("wb") as log:
            consumer = await asyncio.create_subprocess_exec(
                *(sys.executable, str(script)), env={**os.environ, **told}, stdout=log, stderr=log
            )
        try:
            async with httpx.AsyncClient(base_url=str(stack.endpoints["orders"]), timeout=30) as client:
                yield Shop(stack, owner, client, consumer, metrics_port)
            consumer.terminate()
            assert await asyncio.wait_for(consumer.wait(), 60) == 0
        finally:
            if consumer.returncode is None:
                consumer.kill()
                await consumer.wait()
            await owner.close()


def test_it_is_about_forty_lines() -> None:
    code = [line for line in _block("python").splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 40


async def test_the_largest_order_there_may_be_travels_through_it(shop: Shop) -> None:
    products = await shop.products(LINES, NAME)
    order = await shop.place(*products, quantity=3)
    assert order["item_count"] == LINES
    await shop.ordered(products, 3, seconds=60)
    read = await read_topic(shop.stack.addresses.kafka, ORDERS_TOPIC)
    ((_, value),) = read.events[order["order_id"], 1]
    assert len(value) > 2**20


async def test_a_gap_waits_while_the_api_is_away_and_is_filled_when_it_is_back(shop: Shop) -> None:
    (product, other) = await shop.products(2)
    shop.stack.send_signal("outbox-relay", signal.SIGSTOP)
    try:
        order = await shop.place(product, quantity=7)
        shipped = await shop.client.post(
            f"/v1/orders/{order['order_id']}/ship",
            json={},
            headers={**shop.headers("orders:fulfil"), "If-Match": '"1"'},
        )
        assert shipped.status_code == 200
        lost = await shop.owner.execute(
            "DELETE FROM orders.outbox WHERE order_id = $1 AND version = 1", ids.from_text(order["order_id"])
        )
        assert lost == "DELETE 1"
        shop.stack.send_signal("orders-api", signal.SIGSTOP)
    finally:
        shop.stack.send_signal("outbox-relay", signal.SIGCONT)
    try:

        async def waits() -> bool:
            tried = await shop.metric(f'consumer_gaps_total{{outcome="waiting",topic="{ORDERS_TOPIC}"}}')
            waiting = await shop.metric(f'consumer_waiting_partitions{{topic="{ORDERS_TOPIC}"}}')
            return tried > 0 and waiting == 1

        await eventually(waits, "the gap is told")
        assert await shop.metric(f'consumer_lag_messages{{topic="{ORDERS_TOPIC}"}}') == 1
        assert await shop.metric(f'consumer_oldest_age_seconds{{topic="{ORDERS_TOPIC}"}}') > 0
    finally:
        shop.stack.send_signal("orders-api", signal.SIGCONT)
    await shop.ordered([product], 7)
    await shop.place(other, quantity=2)
    await shop.ordered([other], 2)
    assert await shop.metric(f'consumer_gaps_total{{outcome="filled",topic="{ORDERS_TOPIC}"}}') == 1

    async def nothing_waits() -> bool:
        return await shop.metric(f'consumer_waiting_partitions{{topic="{ORDERS_TOPIC}"}}') == 0

    await eventually(nothing_waits, "no partition waits")


async def test_what_was_counted_before_the_inbox_forgot_is_not_counted_again(shop: Shop) -> None:
    (product,) = await shop.products(1)
    order = await shop.place(product, quantity=7)
    await shop.ordered([product], 7)
    # As if it had been placed, counted and forgotten long ago: the inbox keeps a row for 30 days.
    async with shop.owner.transaction():
        await shop.owner.execute("SET LOCAL session_replication_role = replica")
        await shop.owner.execute(
            "UPDATE orders.order_events SET occurred_at = occurred_at - INTERVAL '40 days' WHERE order_id = $1",
            ids.from_text(order["order_id"]),
        )
    await shop.owner.execute("DELETE FROM demand.inbox WHERE key = $1", order["order_id"])
    shipped = await shop.client.post(
        f"/v1/orders/{order['order_id']}/ship", json={}, headers={**shop.headers("orders:fulfil"), "If-Match": '"1"'}
    )
    assert shipped.status_code == 200

    async def gone_on() -> bool:
        version = await shop.owner.fetchval("SELECT last_version FROM demand.inbox WHERE key = $1", order["order_id"])
        return bool(version == 2)

    await eventually(gone_on, "the shipment has come, and the gap before it is filled")
    await shop.ordered([product], 7)


async def test_poison_is_listed_and_redelivered_by_the_command_line(shop: Shop) -> None:
    key = ids.to_text(ids.new_id(clock.now()))
    headers = [("ce_type", b"order.placed"), ("ce_sequence", b"%020d" % 1)]
    await publish(shop.stack.addresses.kafka, ORDERS_TOPIC, [Message(key.encode(), b"no JSON", headers)])

    async def listed() -> list[dict[str, Any]]:
        letters = await shop.orders_command("dead-letters", "--topic", ORDERS_TOPIC)
        return [letter for letter in letters if letter["group"] == "demand"]

    (letter,) = await eventually(listed, "it is listed", every=0.2)
    assert (letter["key"], letter["group"], letter["event"]) == (key, "demand", "order.placed 1")
    assert letter["reason"].startswith("it is no event of an order")
    where = ("--partition", str(letter["partition"]), "--offset", str(letter["offset"]))
    assert await shop.orders_command("dead-letters", "--topic", ORDERS_TOPIC, *where, "--redeliver") == [letter]

    async def twice() -> bool:
        return len(await listed()) == 2

    await eventually(twice, "it is poison still", every=0.2)
    sent = await shop.orders_command("dead-letters", "--redeliver")
    assert len([one for one in sent if one["group"] == "demand"]) == 1, "copies of one are sent as one"
