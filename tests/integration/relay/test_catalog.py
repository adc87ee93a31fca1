"""From the catalogue's outbox to its topic."""

import asyncio
import os
import sys
import uuid
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import orjson
import pytest

from services.common import ids
from services.contracts.catalog import product_of
from services.contracts.envelope import CATALOG_TOPIC
from services.relay.outboxes import CATALOG, ORDERS
from services.relay.settings import RelaySettings
from tests.catalog import Catalogue, new_product_id
from tests.faults.waiting import eventually
from tests.integration.relay.conftest import Topic, listening, metric, relaying
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def products(kafka_url: str) -> AsyncIterator[Topic]:
    """The catalogue's topic."""
    async with listening(kafka_url, CATALOG_TOPIC) as opened:
        yield opened


async def _empty(owner: Owner) -> bool:
    return not await owner.fetchval("SELECT count(*) FROM catalog.outbox")


async def test_each_version_comes_in_order_with_its_headers_and_the_whole_product(
    catalogue: Catalogue, settings: RelaySettings, products: Topic, owner: Owner
) -> None:
    traceparent = f"00-{uuid.uuid4().hex}-{'1' * 16}-01"
    product_id = await catalogue.created()
    shown = [(await catalogue.get(f"/v1/products/{product_id}")).json()]
    for version, price in ((1, 2500), (2, 1500)):
        response = await catalogue.put(
            product_id, headers={"If-Match": f'"{version}"', "traceparent": traceparent}, price=price
        )
        shown.append(response.json())
    rows = await catalogue.events(product_id)
    async with relaying(settings, CATALOG):
        records = await products.of(product_id, 3)
        await eventually(lambda: _empty(owner), "published rows are deleted")
    assert len({record.partition for record in records}) == 1
    for version, (record, row) in enumerate(zip(records, rows, strict=True), start=1):
        product, type_ = shown[version - 1], "product.created" if version == 1 else "product.changed"
        event = orjson.loads(record.value)
        assert event == {
            "event_id": ids.to_text(row["event_id"]),
            "product_id": product_id,
            "version": version,
            "type": type_,
            "occurred_at": product["updated_at"],
            "actor": f"staff:{catalogue.keeper}",
            "data": {"product": product},
        }
        assert orjson.loads(orjson.dumps(product_of(event))) == product
        headers = {name: value.decode() for name, value in record.headers}
        assert len(record.headers) == len(headers), "a header twice"
        assert (headers.pop("traceparent") == traceparent) == (version > 1)
        assert headers == {
            "ce_specversion": "1.0",
            "ce_id": event["event_id"],
            "ce_type": type_,
            "ce_source": "/catalog",
            "ce_subject": product_id,
            "ce_time": product["updated_at"],
            "ce_sequence": f"{version:020d}",
            "ce_partitionkey": product_id,
            "content-type": "application/json",
        }


async def _history(catalogue: Catalogue, product_id: str) -> None:
    """A product with three versions."""
    assert (await catalogue.put(product_id)).status_code == 201
    for version in (1, 2):
        assert (await catalogue.change(product_id, version, price=version)).status_code == 200


def _slice(product_id: str) -> int:
    return ids.shard_of(ids.from_text(product_id)) % ids.SLICES


def _in_slice(number: int) -> str:
    """A new id in that slice."""
    return next(product_id for product_id in iter(new_product_id, "") if _slice(product_id) == number)


async def test_many_products_at_once_each_keep_their_order(
    catalogue: Catalogue, settings: RelaySettings, products: Topic, owner: Owner
) -> None:
    made = [new_product_id() for _ in range(30)]
    async with relaying(settings, CATALOG, batch_rows_per_slice=2):  # so that a product's rows fall into several
        await asyncio.gather(*(_history(catalogue, product_id) for product_id in made))
        for product_id in made:
            await products.of(product_id, 3, seconds=30)
        await eventually(lambda: _empty(owner), "published rows are deleted")
    await products.poll()
    assert [products.versions(product_id) for product_id in made] == [[1, 2, 3]] * len(made)


async def test_an_event_too_large_for_kafka_parks_its_product_and_no_other(
    catalogue: Catalogue, settings: RelaySettings, products: Topic, owner: Owner
) -> None:
    parked = await catalogue.created()
    await owner.execute(
        "INSERT INTO catalog.outbox (slice, aggregate_id, version, event_id, type, data, actor, occurred_at)"
        " VALUES ($1, $2, 99, $3, 'product.changed', jsonb_build_object('x', repeat('x', 5000000)), 'process:test',"
        " now())",
        *(_slice(parked), ids.from_text(parked), uuid.uuid4()),
    )
    assert (await catalogue.change(parked, 1, price=2)).status_code == 200  # stands behind the one that cannot go
    other = _in_slice(_slice(parked))
    await _history(catalogue, other)
    async with relaying(settings, CATALOG):
        await products.of(other, 3)
        assert (await catalogue.change(parked, 2, price=3)).status_code == 200
        last = _in_slice(_slice(parked))
        await _history(catalogue, last)
        await products.of(last, 3)
        await eventually(lambda: _empty(owner), "what is parked is in nobody's way")
        await products.poll()
        assert products.versions(parked) == [1]

        async def seen_from_outside() -> bool:
            return metric("outbox_parked_aggregates", outbox="catalog") == 1

        await eventually(seen_from_outside, "it is counted")
    rows = await owner.fetch("SELECT version, reason FROM relay.parked ORDER BY position")
    assert [row["version"] for row in rows] == [99, 2, 3]
    assert "are more than" in rows[0]["reason"]


async def test_a_writer_wakes_the_relay_of_its_outbox_beside_another(
    catalogue: Catalogue, settings: RelaySettings, products: Topic
) -> None:
    pause = 3.0
    slow = settings.model_copy(update={"poll_seconds_min": pause, "poll_seconds_max": pause})
    async with relaying(slow, ORDERS, CATALOG):
        await products.of(await catalogue.created(), 1)  # whenever: both are at rest afterwards, or nearly
        for _ in range(3):
            polls = metric("db_query_seconds_count", statement="catalog_outbox_read")
            started = asyncio.get_running_loop().time()
            await products.of(await catalogue.created(), 1)
            assert asyncio.get_running_loop().time() - started < pause / 2
            assert metric("db_query_seconds_count", statement="catalog_outbox_read") > polls


async def test_one_outbox_that_cannot_be_read_stops_no_other(
    catalogue: Catalogue, shop: Shop, settings: RelaySettings, kafka_url: str, products: Topic, owner: Owner
) -> None:
    await owner.execute("REVOKE SELECT ON catalog.outbox FROM outbox_relay")
    product_id = await catalogue.created()
    # The process as it is run, so that whatever its relays share is shared here too.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from services.relay.main import main; main()"),
        env={
            **os.environ,
            "ORDERS_POSTGRES_URL": settings.postgres_url,
            "ORDERS_VALKEY_URL": settings.valkey_url,
            "ORDERS_KAFKA_URL": settings.kafka_url,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with listening(kafka_url) as orders:
            for _ in range(3):
                await orders.of((await shop.placed())["order_id"], 1, seconds=30)
        await products.poll()
        assert products.versions(product_id) == []
        assert process.returncode is None
        await owner.execute("GRANT SELECT ON catalog.outbox TO outbox_relay")
        await products.of(product_id, 1, seconds=30)
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 60) == 0
