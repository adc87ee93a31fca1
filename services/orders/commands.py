"""What changes an order. One function is one transaction; it is committed, or nothing of it is there.

A caller may repeat any of these with the same key: they are run again on a new connection when one is lost.
"""

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
from prometheus_client import Counter

from services.common import clock, ids
from services.common.cached import Key as CacheKey
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, Refused, TransientError, retried
from services.common.errors import DomainError, not_found, unavailable
from services.common.idempotency import key_reused
from services.common.ids import OrderKey
from services.common.invalidations import keys_of
from services.common.money import AMOUNT_MAX
from services.contracts.cache import INVENTORY, ORDER
from services.contracts.orders import Adjustment, Event, EventType, Order, OrderStatus, apply, order_of
from services.orders import domain, steps
from services.orders.domain import Command, Part
from services.orders.place import PLACE
from services.orders.repository import CREATE_MONTH, DELETE_KEYS, DELETE_KEYS_BATCH, LOCK, REPLAY, told
from services.orders.turns import NoTurnError, Turns

T = TypeVar("T")
orders_placed_total = Counter("orders_placed_total", "Orders placed, replays not counted", ["currency"])
order_commands_total = Counter("order_commands_total", "Commands carried out, replays not counted", ["command"])
idempotency_replays_total = Counter("idempotency_replays_total", "Answers given again to a known key")
idempotency_conflicts_total = Counter("idempotency_conflicts_total", "Keys refused, by reason", ["reason"])
orders_refused_total = Counter("orders_refused_total", "Requests that the database refused", ["code"])

# What the database says when it refuses, and what a person is told.
REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "product_unknown": (409, "A product is not known."),
    "product_inactive": (409, "A product is not for sale."),
    "currency_mismatch": (409, "A product is sold in another currency."),
    "price_changed": (409, "A price is no longer what the buyer saw."),
    "amount_too_large": (422, f"The total is more than {AMOUNT_MAX} minor units."),
    "total_negative": (422, "Discounts are more than all the rest."),
    "out_of_stock": (409, "There is not enough stock."),
}
PRODUCT_CHANGED: Final = "product_changed"  # between reading a product and locking its stock: read it again
OVERSELL_CHECK: Final = "ck_inventory_reserved_within_on_hand"
CROWDED: Final = "Too many want the same stock, or the same order, just now."


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key as sent, and the hash of what was asked."""

    subject: str
    key: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Line:
    """A line to be ordered; `seen_price` is the price the buyer saw, or (agreed) the one to charge."""

    product_id: UUID
    product_text: str
    quantity: int
    seen_price: int | None


@dataclass(frozen=True, slots=True)
class Placement:
    """An order to be placed by `actor` for `user_id`."""

    user_id: UUID
    actor: str
    currency: str
    lines: Sequence[Line]
    adjustments: Sequence[Adjustment]
    agreed_prices: bool
    payment_method: str | None
    shipping_address_id: str | None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who gives a command: an owner for orders of their own, or staff for any."""

    user_id: UUID
    actor: str
    any_owner: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """The order as the first answer showed it, whether this is that answer given again, and what caches are to hear.

    A replay's `stale` names all there may be: whoever carried the request out may have died before it could tell.
    """

    order: Order
    replayed: bool
    stale: Mapping[CacheKey, int]


async def place_order(
    database: Database,
    turns: Turns,
    placement: Placement,
    key: Key,
    *,
    now: datetime,
    traceparent: str,
    expires_after: timedelta,
) -> Outcome:
    """The order is there with its stock reserved, its first event and its outbox row, once for the key.

    One statement, one commit, one round trip (READ COMMITTED); a replay two. Refusals, which store nothing: 409
    `product_unknown`, `product_inactive`, `currency_mismatch`, `price_changed`, `out_of_stock`, `request_in_progress`,
    422 `amount_too_large`, `total_negative`, `key_reused`, 503 `unavailable`. The statement has its turn at what is
    wanted most of it, and a connection only then; an answer that was given before is given again without one.

    What is charged, and whether the product is for sale at all, is what the product copy says at the commit.
    """
    # Made once, outside any retry: whoever runs the statement again offers the same order.
    order_key = ids.new_order_key(placement.user_id, now)
    event_id = ids.new_id(now)
    order_text = ids.to_text(order_key.order_id)
    status, payment_status = domain.starts_as(placement.payment_method)
    expires_at = now + expires_after if status is OrderStatus.PENDING else None
    values = {
        "shard": order_key.shard,
        "slice": order_key.shard % ids.SLICES,
        "order_id": order_key.order_id,
        "order_text": order_text,
        "created_at": now,
        "created_text": clock.to_text(now),
        "event_id": event_id,
        "user_id": placement.user_id,
        "user_text": str(placement.user_id),
        "subject": key.subject,
        "key": key.key,
        "request_hash": key.request_hash,
        "currency": placement.currency,
        "product_ids": [line.product_id for line in placement.lines],
        "product_texts": [line.product_text for line in placement.lines],
        "quantities": [line.quantity for line in placement.lines],
        "seen_prices": [line.seen_price for line in placement.lines],
        "agreed": placement.agreed_prices,
        "adjustments": orjson.dumps(placement.adjustments).decode(),
        "adjusted_amount": sum(adjustment.amount for adjustment in placement.adjustments),
        "amount_max": AMOUNT_MAX,
        "status": status.value,
        "payment_status": payment_status.value,
        "payment_method": placement.payment_method,
        "shipping_address_id": placement.shipping_address_id,
        "expires_at": expires_at,
        "expires_text": None if expires_at is None else clock.to_text(expires_at),
        "actor": placement.actor,
        "traceparent": traceparent,
    }

    async def once() -> Outcome:
        try:
            async with turns.turn(line.product_id for line in placement.lines):
                rows = await judged(database.rows(PLACE, **values))
        except NoTurnError:
            return await _replayed(database, order_key.shard, key, missing=unavailable(CROWDED))
        if not rows:
            return await _replayed(database, order_key.shard, key)
        event = Event(
            event_id=ids.to_text(event_id),
            order_id=order_text,
            version=1,
            type=EventType.PLACED,
            occurred_at=clock.to_text(now),
            actor=placement.actor,
            data=orjson.loads(rows[0]["data"]),
        )
        return Outcome(apply(None, event), replayed=False, stale=keys_of(rows[0]["keys"]))

    outcome = await retried(once)
    if not outcome.replayed:
        orders_placed_total.labels(placement.currency).inc()
    return outcome


async def command_order(
    database: Database,
    order_key: OrderKey,
    command: Command,
    details: dict[str, Any],
    caller: Caller,
    key: Key,
    *,
    parts: Sequence[Part] | None = None,
    if_match: int | None,
    now: datetime,
    traceparent: str,
) -> Outcome:
    """`command` is carried out on the order at version `if_match`, once for the key, with its event and stock effect.

    `details` is what the command adds to the event's change; `parts` what it moves of which line, all that is open when
    None. One transaction (READ COMMITTED) under the order's row lock. Refusals, which store nothing: 422 `key_reused`,
    404 `not_found`, 428 `if_match_missing`, 412 `version_mismatch`, 409 `transition_not_allowed`,
    `request_in_progress`, 422 `invalid` (`parts` the order does not have), 503 `unavailable`.
    """
    event_id = ids.new_id(now)

    async def once() -> Outcome:
        async with database.transaction() as connection:
            rows = await judged(
                LOCK.rows(
                    connection,
                    **order_key._asdict(),
                    user_id=caller.user_id,
                    any_owner=caller.any_owner,
                    subject=key.subject,
                    key=key.key,
                    request_hash=key.request_hash,
                    version=(if_match or 0) + 1,
                    occurred_at=now,
                )
            )
            if rows:
                _check_version(rows[0]["version"], if_match)
                order = await steps.read(connection, order_key)
                step = domain.decide(order, command, parts)
                stale: dict[CacheKey, int] = {}
                taken = steps.take(
                    connection,
                    order,
                    step,
                    stale,
                    event_id=event_id,
                    actor=caller.actor,
                    now=now,
                    traceparent=traceparent,
                    details=details,
                )
                return Outcome(await judged(taken), replayed=False, stale=stale)
        return await _replayed(database, order_key.shard, key, missing=not_found())

    outcome = await retried(once)
    if not outcome.replayed:
        order_commands_total.labels(command).inc()
    return outcome


def _check_version(current: int, if_match: int | None) -> None:
    if if_match is None:
        raise DomainError("if_match_missing", 428, 'Send If-Match with the version you have seen, for example "1".')
    if if_match != current:
        raise DomainError(
            "version_mismatch", 412, "The order has changed since you saw it.", extra={"current_version": current}
        )


async def judged(
    work: Awaitable[T],
    *,
    refusals: Mapping[str, tuple[int, str]] = REFUSALS,
    oversell: str = "out_of_stock",
    gate: str = "idempotency_keys",
) -> T:
    """What `work` gives, or the refusal that its error means.

    `refusals` are those it may raise, `oversell` the one that the CHECK on stock stands for, and `gate` what PostgreSQL
    names in the context of its error when it waited for another request with the same key. TransientError when a
    product changed before its stock was locked.
    """
    try:
        return await work
    except Refused as refused:
        if refused.code == PRODUCT_CHANGED:
            raise TransientError(refused.code) from refused
        code = oversell if refused.code == OVERSELL_CHECK else refused.code
        if code not in refusals:
            raise
        orders_refused_total.labels(code).inc()
        status, detail = refusals[code]
        raise DomainError(code, status, detail, extra=refused.extra) from refused
    except LockTimeoutError as timeout:
        if gate in timeout.context:
            idempotency_conflicts_total.labels("request_in_progress").inc()
            raise DomainError(
                "request_in_progress",
                409,
                "A request with this Idempotency-Key is still under way.",
                headers={"Retry-After": "1"},
            ) from timeout
        raise unavailable(CROWDED) from timeout


async def _replayed(database: Database, shard: int, key: Key, *, missing: DomainError | None = None) -> Outcome:
    """The answer first given to `key`. 422 `key_reused`; `missing` when the key is not known after all."""
    rows = await database.rows(REPLAY, shard=shard, subject=key.subject, key=key.key)
    if not rows:
        if missing is not None:
            raise missing
        raise TransientError("key_expired")  # it was deleted between the two statements: the next try opens the gate
    if rows[0]["request_hash"] != key.request_hash:
        idempotency_conflicts_total.labels("key_reused").inc()
        raise key_reused()
    idempotency_replays_total.inc()
    order = order_of(told(rows))
    moved = {CacheKey(INVENTORY, item.product_id): 0 for item in order.items}  # to what version is not known any more
    return Outcome(order, replayed=True, stale={CacheKey(ORDER, order.order_id): order.version, **moved})


async def create_months(database: Database, current: datetime, months_ahead: int) -> list[datetime]:
    """The partitions of `current` and the `months_ahead` months after it exist; gives those that were made now.

    One transaction a month. LockTimeoutError when a lock is not granted within 2 s: what is made stays, run it again.
    """
    return [
        month
        for month in (clock.add_months(current, ahead) for ahead in range(months_ahead + 1))
        if (await database.rows(CREATE_MONTH, month=month.date()))[0]["made"]
    ]


async def delete_keys(database: Database, *, older_than: datetime) -> int:
    """No idempotency key is older; gives how many were deleted. A transaction a batch, so that no lock is held long."""
    deleted = 0
    while True:
        rows = await database.rows(DELETE_KEYS, older_than=older_than)
        deleted += len(rows)
        if len(rows) < DELETE_KEYS_BATCH:
            return deleted
