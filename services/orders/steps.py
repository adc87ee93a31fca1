"""A step of an order as it is stored: event, rows as the fold leaves them, stock, outbox row, what to tell caches."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.cached import Key
from services.common.db import WriteConnection
from services.common.ids import OrderKey
from services.common.invalidations import keys_of
from services.contracts.orders import Event, Order, apply, order_of
from services.orders import domain
from services.orders.advance import ADVANCE
from services.orders.domain import Step
from services.orders.repository import ALL_EVENTS, GET_EVENTS, told

NOTHING: Final[Mapping[str, Any]] = {}


async def read(connection: WriteConnection, key: OrderKey) -> Order:
    """The order as it stands: to be asked only once its row is locked, in a snapshot taken after that. One read."""
    events = await GET_EVENTS.rows(
        connection, **key._asdict(), user_id=None, any_owner=True, after_version=0, limit=ALL_EVENTS
    )
    return order_of(told(events))


async def take(
    connection: WriteConnection,
    order: Order,
    step: Step,
    stale: dict[Key, int],
    *,
    event_id: UUID,
    actor: str,
    now: datetime,
    traceparent: str | None,
    details: Mapping[str, Any] = NOTHING,
) -> Order:
    """`order` after `step`; event, rows, stock and outbox row are written in the transaction that holds its lock.

    `details` is what the event says of the change besides. What caches may keep of before is added to `stale`, to be
    told once the transaction has committed. One statement; it raises what the database refuses.
    """
    event = Event(
        event_id=ids.to_text(event_id),
        order_id=order.order_id,
        version=order.version + 1,
        type=step.event.value,
        occurred_at=clock.to_text(now),
        actor=actor,
        data=data_of(order, step, details),
    )
    after = apply(order, event)
    rows = await ADVANCE.rows(connection, **_advanced(order, after, event, event_id, traceparent, now))
    stale.update(keys_of(rows[0]["keys"]))
    return after


def data_of(order: Order, step: Step, details: Mapping[str, Any] = NOTHING) -> dict[str, Any]:
    """`data` of the event that `step` leaves on `order`."""
    after = {
        "status": step.status,
        "payment_status": step.payment_status,
        "currency": order.currency,
        "total_amount": order.total_amount,
        "user_id": order.user_id,
    }
    return {"change": {**details, **step.change}, "after": after}


def _advanced(
    before: Order, order: Order, event: Event, event_id: UUID, traceparent: str | None, now: datetime
) -> dict[str, Any]:
    """Parameters of ADVANCE: the rows are written from the fold, so they cannot differ from it."""
    key = ids.order_key(ids.from_text(order.order_id))
    changed = [item for item, old in zip(order.items, before.items, strict=True) if item != old]
    stock = domain.stock_effect(before, order)
    return {
        "order_id": key.order_id,
        "created_at": key.created_at,
        "shard": key.shard,
        "slice": key.shard % ids.SLICES,
        "status": order.status,
        "payment_status": order.payment_status,
        "total_amount": order.total_amount,
        "captured_amount": order.captured_amount,
        "refunded_amount": order.refunded_amount,
        "tracking": order.tracking,
        "cancel_reason": order.cancel_reason,
        "version": order.version,
        "occurred_at": now,
        "line_nos": [item.line_no for item in changed],
        "shipped_quantities": [item.shipped_quantity for item in changed],
        "returned_quantities": [item.returned_quantity for item in changed],
        "product_ids": [ids.from_text(product_id) for product_id in stock],
        "on_hand_deltas": [effect.on_hand for effect in stock.values()],
        "reserved_deltas": [effect.reserved for effect in stock.values()],
        "event_id": event_id,
        "type": event.type,
        "data": orjson.dumps(event.data).decode(),
        "actor": event.actor,
        "traceparent": traceparent,
    }
