"""What the statement that places an order is given, for those that run it without the order service."""

from datetime import datetime
from typing import Any
from uuid import UUID

from services.common import clock, ids
from services.common.ids import OrderKey
from services.orders.place import PLACE


def arguments(
    order: OrderKey, *, user_id: UUID, subject: str, key: str, currency: str, items: list[dict[str, Any]], now: datetime
) -> list[object]:
    """Of PLACE, in its order: an order on account of the caller's own, as the service binds it."""
    return PLACE.arguments(
        {
            "shard": order.shard,
            "slice": order.shard % ids.SLICES,
            "order_id": order.order_id,
            "order_text": ids.to_text(order.order_id),
            "created_at": order.created_at,
            "created_text": clock.to_text(order.created_at),
            "event_id": ids.new_id(now),
            "user_id": user_id,
            "user_text": str(user_id),
            "subject": subject,
            "key": key,
            "request_hash": b"",
            "currency": currency,
            "product_ids": [ids.from_text(item["product_id"]) for item in items],
            "product_texts": [item["product_id"] for item in items],
            "quantities": [item["quantity"] for item in items],
            "seen_prices": [None for _ in items],
            "agreed": False,
            "adjustments": "[]",
            "adjusted_amount": 0,
            "amount_max": 2**53 - 1,
            "status": "confirmed",
            "payment_status": "on_account",
            "payment_method": None,
            "shipping_address_id": None,
            "expires_at": None,
            "expires_text": None,
            "actor": f"user:{user_id}",
            "traceparent": None,
        }
    )
