"""What the catalogue says on Kafka, without the catalogue: product events as its relay publishes them."""

from collections.abc import Sequence
from typing import Any

import orjson

from services.common import clock, ids
from services.common.publisher import Publisher
from services.common.stream import Message, RawMessage
from services.contracts import envelope
from services.contracts.catalog import ProductEventType


def new_product_id() -> str:
    return ids.to_text(ids.new_id(clock.now()))


def told(
    product_id: str, version: int, /, *, type_: str = "", headers: dict[str, str | None] | None = None, **changes: Any
) -> Message:
    """Version `version` of a product, at 100 + version unless `changes` says otherwise; a header None is left out."""
    now = clock.to_text(clock.now())
    type_ = type_ or (ProductEventType.CREATED if version == 1 else ProductEventType.CHANGED)
    product = {
        "product_id": product_id,
        "name": f"Thing {version}",
        "description": "",
        "price": 100 + version,
        "currency": "USD",
        "active": True,
        "version": version,
        "updated_at": now,
        **changes,
    }
    event_id = ids.to_text(ids.new_id(clock.now()))
    value = {
        "event_id": event_id,
        "product_id": product_id,
        "version": version,
        "type": type_,
        "occurred_at": now,
        "actor": "process:test",
        "data": {"product": product},
    }
    made = dict(
        envelope.headers(
            event_id=event_id,
            type_=type_,
            source=envelope.CATALOG_SOURCE,
            subject=product_id,
            time=now,
            version=version,
            traceparent=None,
        )
    )
    for name, text in (headers or {}).items():
        made.pop(name, None)
        if text is not None:
            made[name] = text.encode()
    return Message(product_id.encode(), orjson.dumps(value), list(made.items()))


async def publish(kafka_url: str, topic: str, messages: Sequence[RawMessage]) -> None:
    """They are on the topic."""
    async with Publisher(kafka_url, client_id="test") as publisher:
        await publisher.publish(topic, messages)
