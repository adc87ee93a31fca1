"""Products that change under faults, and what is to be true of the copy that orders keep of them."""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx

from services.common.stream import Message, StreamError, dead_letter_topic
from services.contracts.envelope import CATALOG_TOPIC
from services.embedded.supervisor import Stack
from tests.faults.conftest import SEED
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually
from tests.product_events import new_product_id, publish, told

# Whatever wrote it: a version that does not grow leaves a row.
WITNESS = """
CREATE TABLE orders.went_back (product_id UUID, before BIGINT, after BIGINT);
CREATE FUNCTION orders.witness() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN
    INSERT INTO orders.went_back VALUES (old.product_id, old.version, new.version);
    RETURN new;
END $$;
CREATE TRIGGER witness BEFORE UPDATE ON orders.products
    FOR EACH ROW WHEN (new.version <= old.version) EXECUTE FUNCTION orders.witness();
"""
PRODUCTS = 10
_COPY = """
SELECT count(*) FROM catalog.products c FULL JOIN orders.products p USING (product_id)
WHERE (c.version, c.name, c.price) IS DISTINCT FROM (p.version, p.name, p.price)
"""


@dataclass
class Keeper:
    """Changes products through the API as long as told; `poison` are those of which the topic has nonsense besides."""

    stack: Stack
    client: httpx.AsyncClient
    token: str
    versions: dict[str, int] = field(default_factory=lambda: {new_product_id(): 0 for _ in range(PRODUCTS)})
    poison: list[str] = field(default_factory=list)
    ending: bool = False

    async def keep(self, pause_seconds: float) -> None:
        """One change after the other; of sixteen one is followed by nonsense."""
        chance = random.Random(SEED)
        while not self.ending:
            product_id = chance.choice(list(self.versions))
            await self._changed(product_id, self.versions[product_id] + 1)
            if chance.random() < 1 / 16:
                self.poison.append(new_product_id())
                await self._said(told(self.poison[-1], 1, price="as much as you like"))
            await asyncio.sleep(pause_seconds)

    async def _changed(self, product_id: str, version: int) -> None:
        body: dict[str, Any] = {"name": f"Thing {version}", "price": 100 + version, "currency": "USD", "active": True}
        condition = {"If-None-Match": "*"} if version == 1 else {"If-Match": f'"{version - 1}"'}
        url = f"{self.stack.endpoints['catalog']}/v1/products/{product_id}"
        headers = {"Authorization": f"Bearer {self.token}", **condition}

        async def written() -> bool:
            try:
                response = await self.client.put(url, json=body, headers=headers)
            except httpx.TransportError:
                return False
            # 412: an attempt whose answer was lost, as nobody else changes it
            assert response.status_code in {200, 201, 412, 503}, response.text
            return response.status_code != 503

        await eventually(written, f"version {version} of {product_id}", seconds=60, every=0.1)
        self.versions[product_id] = version

    async def _said(self, message: Message) -> None:
        async def said() -> bool:
            try:
                await publish(self.stack.addresses.kafka, CATALOG_TOPIC, [message])
            except StreamError:
                return False
            return True

        await eventually(said, "Kafka takes a message", seconds=300, every=0.2)

    async def assert_copied(self) -> str:
        """The copy is the catalogue, and never went back; the topic has every version in order, nonsense is a dead
        letter, and nothing else is. Figures."""
        owner = await asyncpg.connect(self.stack.addresses.postgres)

        async def same() -> bool:
            return not await owner.fetchval(_COPY)

        try:
            await eventually(same, "the copy is the catalogue", seconds=60, every=0.2)
            rows = await owner.fetch("SELECT version FROM catalog.products WHERE name LIKE 'Thing %' AND version > 1")
            assert await owner.fetch("SELECT * FROM orders.went_back") == []
        finally:
            await owner.close()
        assert sorted(row["version"] for row in rows) == sorted(v for v in self.versions.values() if v > 1)
        read = await read_topic(self.stack.addresses.kafka, CATALOG_TOPIC)
        for product_id, version in self.versions.items():
            assert read.first_seen(product_id) == list(range(1, version + 1))
        dead_topic = dead_letter_topic(CATALOG_TOPIC)

        async def buried() -> bool:
            return set((await read_topic(self.stack.addresses.kafka, dead_topic)).versions) == set(self.poison)

        await eventually(buried, "every dead letter is there", seconds=60, every=0.5)
        dead = await read_topic(self.stack.addresses.kafka, dead_topic)
        changes = sum(self.versions.values())
        return (
            f"{changes} changes of products, {read.duplicates} twice; {len(dead.events)} dead, {dead.duplicates} twice"
        )
