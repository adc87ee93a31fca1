"""What changes a product. One function is one transaction; it is committed, or nothing of it is there."""

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import orjson
from prometheus_client import Counter

from services.catalog.repository import PUT_PRODUCT, find_product
from services.common import clock, ids
from services.common.db import Database, TransientError, retried
from services.common.errors import DomainError
from services.contracts.catalog import Product, ProductEventType

products_written_total = Counter("products_written_total", "Products put, by what that did", ["result"])


class Result(StrEnum):
    """What putting a product did."""

    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class Content:
    """All that the owner of a product says of it; `price` is in minor units of `currency`."""

    name: str
    description: str
    price: int
    currency: str
    active: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold for the write: the version that was seen (None: nothing was said), or that there is none."""

    if_match: int | None = None
    must_be_new: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """The product as it stands after the request, and what that did."""

    product: Product
    result: Result


async def put_product(
    database: Database,
    product_id: UUID,
    content: Content,
    condition: Condition,
    *,
    actor: str,
    now: datetime,
    traceparent: str,
) -> Written:
    """The product is as `content` says, at its next version, and the event that says so is in the outbox.

    One statement, one commit, one round trip (READ COMMITTED); two when nothing is written. Without a condition a
    product that is there already stays as it is: it must be the same (RFC 9110, section 9.2.2), or a version be named.
    Refusals, which store nothing: 428 `if_match_missing`, 412 `version_mismatch` (also when somebody has changed the
    product between a write whose answer was lost and its repetition here), 503 `unavailable`.
    """
    version = (condition.if_match or 0) + 1
    # Made once, outside any retry: whoever runs the statement again knows the row it has written before.
    event_id = ids.new_id(now)
    product = Product(
        product_id=ids.to_text(product_id),
        name=content.name,
        description=content.description,
        price=content.price,
        currency=content.currency,
        active=content.active,
        version=version,
        updated_at=clock.to_text(now),
    )
    values = {
        **asdict(content),
        "product_id": product_id,
        "version": version,
        "updated_at": now,
        "slice": ids.shard_of(product_id) % ids.SLICES,
        "event_id": event_id,
        "type": (ProductEventType.CREATED if version == 1 else ProductEventType.CHANGED).value,
        "data": orjson.dumps({"product": product}).decode(),
        "actor": actor,
        "traceparent": traceparent,
    }
    written = Written(product, Result.CREATED if version == 1 else Result.CHANGED)
    sent_before = False

    async def once() -> Written:
        nonlocal sent_before
        repeated, sent_before = sent_before, True
        if await database.rows(PUT_PRODUCT, **values):
            return written
        current = await find_product(database, product_id)
        if repeated and current == product:
            return written  # by the try whose answer was lost
        return _unwritten(current, product, condition)

    outcome = await retried(once)
    products_written_total.labels(outcome.result.value).inc()
    return outcome


def _unwritten(current: Product | None, wanted: Product, condition: Condition) -> Written:
    """What it means that nothing was written over `current`. Raises the refusal, unless nothing had to be."""
    if condition.if_match is None and not condition.must_be_new:
        if current is None:
            raise TransientError("product_removed")  # between the two statements; no process may
        if replace(wanted, version=current.version, updated_at=current.updated_at) == current:
            return Written(current, Result.UNCHANGED)
        raise DomainError("if_match_missing", 428, 'Send If-Match with the version you have seen, for example "1".')
    raise DomainError(
        "version_mismatch",
        412,
        "The product has changed since you saw it, or is there already, or not at all.",
        extra={"current_version": None if current is None else current.version},
    )
