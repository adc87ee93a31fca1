"""From the catalogue's outbox to its topic."""

import uuid
from collections.abc import AsyncIterator
from typing import TypeAlias

import asyncpg
import orjson
import pytest

from services.common import ids
from services.contracts.catalog import product_of
from services.contracts.envelope import CATALOG_TOPIC
from services.relay.outboxes import CATALOG
from services.relay.settings import RelaySettings
from tests.catalog import Catalogue
from tests.integration.relay.conftest import Topic, eventually, listening, relaying

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
    (rows, waiting) = (await catalogue.events(product_id), 3)
    async with relaying(settings, CATALOG):
        records = await products.of(product_id, waiting)
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
