"""What orders say on Kafka, without orders: events of a paid order as the relay publishes them."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common import clock, ids
from services.common.stream import Message, Received
from services.contracts import envelope
from services.contracts.schema import example, load_all

_SCHEMAS = load_all()


def new_order_id() -> str:
    """The id of an order that is placed now."""
    return ids.to_text(ids.new_order_key(uuid.uuid4(), clock.now()).order_id)


@dataclass
class PaidOrder:
    """An order, whose events are told one after another."""

    total: int = 1000
    payment_method: str | None = "pm_card"
    currency: str = "USD"
    order_id: str = field(default_factory=new_order_id)
    user_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    version: int = 0

    def placed(self, **change: Any) -> Message:
        """order.placed."""
        told = {
            "order_id": self.order_id,
            "user_id": self.user_id,
            "payment_method": self.payment_method,
            "currency": self.currency,
            "total_amount": self.total,
        }
        return self.told("placed", "pending", **(told | change))

    def shipped(self, amount: int, *, final: bool = True) -> Message:
        """order.shipped."""
        return self.told("shipped", "shipped" if final else "partially_shipped", amount=amount)

    def returned(self, amount: int) -> Message:
        """order.returned."""
        return self.told("returned", "returned", amount=amount)

    def cancelled(self) -> Message:
        """order.cancelled."""
        return self.told("cancelled", "cancelled", cancel_reason="expired")

    def told(self, type_: str, status: str, **change: Any) -> Message:
        """The next event of the order."""
        self.version += 1
        found = example(_SCHEMAS[f"order.{type_}.v1"])
        now = clock.now()
        event = {
            **found,
            "event_id": ids.to_text(ids.new_id(now)),
            "order_id": self.order_id,
            "version": self.version,
            "occurred_at": clock.to_text(now),
            "data": {
                "change": {**found["data"]["change"], **change},
                "after": {**found["data"]["after"], "status": status},
            },
        }
        headers = envelope.headers(
            event_id=event["event_id"],
            type_=event["type"],
            source=envelope.ORDERS_SOURCE,
            subject=self.order_id,
            time=event["occurred_at"],
            version=self.version,
            traceparent=None,
        )
        return Message(self.order_id.encode(), orjson.dumps(event), headers)


def as_received(*messages: Message) -> list[Received]:
    """As they come in one partition."""
    return [
        Received(0, offset, message.key, message.value, dict(message.headers), 0)
        for offset, message in enumerate(messages)
    ]
