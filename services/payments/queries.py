"""What is read of payments."""

from typing import Any

from services.common import clock
from services.common.db import Database
from services.contracts.payments import Payment
from services.payments.repository import GET_PAYMENT, GET_STEPS, OLDEST_DUE, key_of, payment_from


async def oldest_due_seconds(database: Database) -> float:
    """For how long the step that waits longest has been due; 0 when none is. One index read. TransientError."""
    rows = await database.rows(OLDEST_DUE)
    return float(rows[0]["seconds"]) if rows else 0.0


async def get_payment(database: Database, order_id: str) -> tuple[Payment | None, list[dict[str, Any]]]:
    """The payment of an order and its steps in their order, times as text; (None, []) when it has none.

    Two index reads. ValueError when it is no id of an order.
    """
    key = key_of(order_id)
    rows = await database.rows(GET_PAYMENT, **key)
    if not rows:
        return None, []
    steps = await database.rows(GET_STEPS, order_id=key["order_id"], shard=key["shard"])
    times = ("due_at", "asked_at", "ended_at")
    return payment_from(rows[0]), [
        {**step, **{name: clock.to_text(step[name]) if step[name] else None for name in times}} for step in steps
    ]
