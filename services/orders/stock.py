"""What changes stock by hand. One function is one transaction; orders' own effects on stock are in `commands`."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from services.common import ids
from services.common.cached import Key as CacheKey
from services.common.db import Database, Row
from services.common.db_errors import TransientError, retried
from services.common.errors import not_found
from services.common.idempotency import key_reused
from services.common.money import AMOUNT_MAX
from services.contracts.cache import INVENTORY
from services.orders.commands import (
    Key,
    idempotency_conflicts_total,
    idempotency_replays_total,
    judged,
)
from services.orders.repository import ADJUST, GET_MOVEMENT

inventory_adjustments_total = Counter("inventory_adjustments_total", "Adjustments of stock, replays not counted")

ON_HAND_MAX: Final = AMOUNT_MAX  # what a JSON number holds exactly, as for money

# What the database says when it refuses, and what a person is told.
REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "below_reserved": (409, "There would be less on hand than orders have reserved."),
    "amount_too_large": (422, f"There would be more than {ON_HAND_MAX} units on hand."),
}


@dataclass(frozen=True, slots=True)
class Adjustment:
    """`delta` units of a product that have come or gone, as `actor` says for this `reason`."""

    product_id: UUID
    delta: int
    reason: str
    actor: str


@dataclass(frozen=True, slots=True)
class Adjusted:
    """The stock as it was right after the adjustment, and whether this is the first answer given again."""

    on_hand: int
    reserved: int
    version: int
    replayed: bool
    stale: Mapping[CacheKey, int]  # what caches are to hear; of a replay too, as its first may not have told it


async def adjust_stock(database: Database, adjustment: Adjustment, key: Key, *, now: datetime) -> Adjusted:
    """The stock has changed by `delta`, once for the key, and the movement says so; the first makes the stock row.

    One statement, one commit, one round trip (READ COMMITTED); a replay two. Locks: the turn of the key, then the
    stock. Refusals, which store nothing: 422 `key_reused`, 404 `not_found`, 409 `below_reserved`,
    `request_in_progress`, 422 `amount_too_large`, 503 `unavailable`.
    """
    shard = ids.shard_of(adjustment.product_id)  # no order's: it only spreads the work of telling caches
    values = {
        "shard": shard,
        "slice": shard % ids.SLICES,
        "product_id": adjustment.product_id,
        "delta": adjustment.delta,
        "reason": adjustment.reason,
        "actor": adjustment.actor,
        "subject": key.subject,
        "key": key.key,
        "request_hash": key.request_hash,
        "created_at": now,
        "amount_max": ON_HAND_MAX,
    }

    async def once() -> Adjusted:
        rows = await judged(
            database.rows(ADJUST, **values),
            refusals=REFUSALS,
            oversell="below_reserved",
            gate="take_adjustment_turn",
        )
        if rows:
            return _adjusted(adjustment.product_id, rows[0], replayed=False)
        return await _replayed(database, adjustment.product_id, key)

    adjusted = await retried(once)
    if not adjusted.replayed:
        inventory_adjustments_total.inc()
    return adjusted


async def _replayed(database: Database, product_id: UUID, key: Key) -> Adjusted:
    """The answer first given to `key`. 422 `key_reused`; 404 `not_found` when the product is not known."""
    rows = await database.rows(GET_MOVEMENT, product_id=product_id, subject=key.subject, key=key.key)
    if not rows:
        raise not_found()
    row = rows[0]
    if row["version"] is None:
        # Another's first adjustment made the stock row, or the product became known: the next try finds it.
        raise TransientError("stock_row_made")
    if row["request_hash"] != key.request_hash:
        idempotency_conflicts_total.labels("key_reused").inc()
        raise key_reused()
    idempotency_replays_total.inc()
    return _adjusted(product_id, row, replayed=True)


def _adjusted(product_id: UUID, row: Row, *, replayed: bool) -> Adjusted:
    stale = {CacheKey(INVENTORY, ids.to_text(product_id)): row["version"]}
    return Adjusted(row["on_hand"], row["reserved"], row["version"], replayed, stale)
