"""What real commands write is what the schemas say, closed: over HTTP, on Kafka, and in the log."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest

from services.common import clock
from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.contracts.catalog import ProductEventType
from services.contracts.envelope import CATALOG_TOPIC
from services.contracts.orders import EventType
from services.contracts.payments import PaymentState
from services.orders.seed import seed
from services.orders.settlements import settle_orders
from services.relay.outboxes import CATALOG, ORDERS
from services.relay.settings import RelaySettings
from tests.catalog import Catalogue, new_product_id
from tests.conftest import AsRole
from tests.contracts.events import check
from tests.integration.relay.conftest import Topic, listening, relaying
from tests.payment_events import as_received, payment, told
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LONGEST = "\N{TEAPOT}" * 200


@pytest.fixture
async def projector(as_role: AsRole) -> AsyncIterator[Database]:
    """The database, as orders-projector has it."""
    database = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=1)
    await database.open()
    yield database
    await database.close()


async def placements(shop: Shop) -> list[dict[str, Any]]:
    """Orders placed in every way there is."""
    product, cheap = await shop.product(name=LONGEST, stock=10_000_000), await shop.product(price=1)
    own = [
        await shop.placed((product, 3), (cheap, 1), (product, 1)),
        await shop.placed((product, 1_000_000)),
        await shop.placed((product, 1), payment_method="pm_" + "x" * 197, shipping_address_id="x" * 200),
        await shop.placed(*[(cheap, 1)] * 50),
    ]
    desk = shop.auth("orders:read orders:write orders:price", sub="0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001")
    agreed: list[dict[str, Any]] = [
        {"items": [{"product_id": product, "quantity": 1, "unit_price": 10**12}]},
        {
            "items": [{"product_id": product, "quantity": 2}, {"product_id": cheap, "quantity": 1}],
            "adjustments": [
                {"kind": kind, "label": LONGEST, "amount": -5 if kind == "discount" else 5, "line_no": line_no}
                for kind in ("tax", "shipping", "fee", "discount")
                for line_no in (None, 2)
            ],
        },
        {
            "items": [{"product_id": cheap, "quantity": 1, "unit_price": 5}],
            "adjustments": [{"kind": "discount", "label": "all of it", "amount": -5}],
            "payment_method": "pm_1",
        },
    ]
    for body in agreed:
        response = await shop.place(headers=desk, user_id=str(shop.buyer), **body)
        assert response.status_code == 201, response.text
        own.append(response.json())
    return own


async def commanded(shop: Shop, order: dict[str, Any], *commands: tuple[str, dict[str, Any]]) -> None:
    """They are carried out."""
    for name, body in commands:
        response = await shop.command(order, name, body)
        assert response.status_code == 200, response.text
        order = response.json()


async def lives(shop: Shop) -> list[str]:
    """The ids of orders that have lived in every way there is."""
    parts, whole, unpaid, many, dear, adjusted, free = await placements(shop)
    one = [{"line_no": 1, "quantity": 1}]
    await commanded(
        shop,
        parts,
        ("ship", {"items": one, "tracking": LONGEST}),
        ("ship", {"items": [{"line_no": 2, "quantity": 1}, *one]}),
        ("ship", {}),
        ("deliver", {}),
        ("return", {"items": one}),
        ("return", {}),
    )
    await commanded(shop, whole, ("ship", {}), ("deliver", {}), ("return", {}))
    await commanded(shop, many, ("ship", {"tracking": "T"}))
    await commanded(shop, dear, ("cancel", {"reason": "out_of_stock"}))
    await commanded(shop, adjusted, ("cancel", {}))
    response = await shop.command(unpaid, "cancel", scope="orders:write", sub=shop.buyer)
    assert response.json()["cancel_reason"] == "customer"
    return [order["order_id"] for order in (parts, whole, unpaid, many, dear, adjusted, free)]


async def payments(shop: Shop, projector: Database) -> list[str]:
    """The ids of orders whose payments came to every end there is."""
    product = await shop.product()
    paid, declined, voided = [await shop.placed((product, 2), payment_method="pm_1") for _ in range(3)]

    async def settled(order: dict[str, Any], state: PaymentState, *amounts: int, version: int = 1) -> dict[str, Any]:
        said = as_received(told(payment(order, state, *amounts, version=version)))
        assert await settle_orders(projector, AfterCommit(lambda: None, None), "t", said) == {"applied": 1}
        found: dict[str, Any] = (await shop.get(f"/v1/orders/{order['order_id']}")).json()
        return found

    total = paid["total_amount"]
    paid = await settled(paid, PaymentState.AUTHORIZED)
    await commanded(shop, paid, ("ship", {}), ("deliver", {}), ("return", {}))
    await settled(paid, PaymentState.AUTHORIZED, total, total, total, version=2)
    await settled(declined, PaymentState.FAILED)
    await commanded(shop, await settled(voided, PaymentState.AUTHORIZED), ("cancel", {}))
    await settled(voided, PaymentState.VOIDED, version=2)
    return [order["order_id"] for order in (paid, declined, voided)]


async def test_every_event_of_an_order_is_as_its_schema_says(
    shop: Shop, settings: RelaySettings, topic: Topic, projector: Database
) -> None:
    async with relaying(settings):
        order_ids = [*await lives(shop), *await payments(shop, projector)]
        seen = set()
        for order_id in order_ids:
            shown = (await shop.get(f"/v1/orders/{order_id}/events")).json()["data"]
            records = await topic.of(order_id, len(shown))
            assert [orjson.loads(record.value) for record in records] == shown
            for event in shown:
                check(event)
                seen.add(event["type"])
    assert seen == set(EventType)


async def test_every_event_of_a_product_is_as_its_schema_says(
    catalogue: Catalogue, settings: RelaySettings, kafka_url: str
) -> None:
    async with listening(kafka_url, CATALOG_TOPIC) as topic, relaying(settings, CATALOG):
        product_id, other = new_product_id(), await catalogue.created(description="", active=False, price=1)
        created = await catalogue.put(product_id, name=LONGEST, description="a\n" * 5_000, price=10**12, currency="JPY")
        assert created.status_code == 201
        for version, members in ((1, {"price": 5}), (2, {"active": False}), (3, {"description": ""})):
            assert (await catalogue.change(product_id, version, **members)).status_code == 200
        records = [*await topic.of(product_id, 4), *await topic.of(other, 1)]
    events = [orjson.loads(record.value) for record in records]
    for event in events:
        check(event)
    assert {event["type"] for event in events} == set(ProductEventType)


async def test_every_event_of_a_seeded_past_is_as_its_schema_says(database_url: str, owner: Owner) -> None:
    await seed(database_url, products=20, orders=300, months=2, now=clock.now())
    rows = await owner.fetch(
        "SELECT *, order_id AS aggregate_id, data::text AS data FROM orders.order_events ORDER BY order_id, version"
    )
    assert len(rows) > 300
    products = await owner.fetch("SELECT *, data::text AS data FROM catalog.outbox")
    assert len(products) == 20
    messages = [*(ORDERS.message(row) for row in rows), *(CATALOG.message(row) for row in products)]
    for number, message in enumerate(messages):
        check(orjson.loads(message.value))
        if number % 100 == 0:
            await asyncio.sleep(0)  # the servers' supervisor is in this loop
