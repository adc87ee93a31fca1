"""What changes a product. One function is one transaction; it is committed, or nothing of it is there."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import orjson
from prometheus_client import Counter

from services.catalog.repository import LOCK_PRODUCTS, PUT_PRODUCT, find_product, product_from
from services.common import clock, ids
from services.common.db import Database
from services.common.db_errors import TransientError, retried
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
class Wanted:
    """A product as it is to be, whatever it is now."""

    product_id: UUID
    content: Content


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
    wanted = Wanted(product_id, content)
    product = _product(wanted, version, now)
    # Made once, outside any retry: whoever runs the statement again knows the row it has written before.
    values = _values(wanted, product, now, actor, traceparent)
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


async def put_products(
    database: Database, wanted: Sequence[Wanted], *, actor: str, now: datetime, traceparent: str
) -> list[Written]:
    """Each product is as wanted, whatever it was, and its event is in the outbox; gives them in the order of `wanted`.

    Each product stands there once. One transaction (READ COMMITTED) and, for all of them, two round trips besides BEGIN
    and COMMIT, one when nothing has to be written. Repeated, it writes nothing. 503 `unavailable`.
    """
    ordered = sorted(wanted, key=lambda one: one.product_id)
    sent_before = False

    async def once() -> dict[UUID, Written]:
        nonlocal sent_before
        repeated, sent_before = sent_before, True
        async with database.transaction() as connection:
            rows = await LOCK_PRODUCTS.rows(connection, product_ids=[one.product_id for one in ordered])
            before = {row["product_id"]: product_from(row) for row in rows}
            done = {one.product_id: _decided(one, before.get(one.product_id), now, repeated) for one in ordered}
            changes = [
                _values(one, written.product, now, actor, traceparent)
                for one in ordered
                if (written := done[one.product_id]).product is not before.get(one.product_id)
            ]
            if changes and len(await PUT_PRODUCT.rows_of_each(connection, changes)) < len(changes):
                raise TransientError("product_created")  # by somebody else, since the locks; the next try sees it
        return done

    outcome = await retried(once)
    for written in outcome.values():
        products_written_total.labels(written.result.value).inc()
    return [outcome[one.product_id] for one in wanted]


def _decided(wanted: Wanted, before: Product | None, now: datetime, repeated: bool) -> Written:
    """What becomes of a product that is `before`, whose row is locked."""
    if before is None:
        return Written(_product(wanted, 1, now), Result.CREATED)
    if replace(_product(wanted, before.version, now), updated_at=before.updated_at) != before:
        return Written(_product(wanted, before.version + 1, now), Result.CHANGED)
    if repeated and before.updated_at == clock.to_text(now):  # by the try whose answer was lost
        return Written(before, Result.CREATED if before.version == 1 else Result.CHANGED)
    return Written(before, Result.UNCHANGED)


def _product(wanted: Wanted, version: int, now: datetime) -> Product:
    content = wanted.content
    return Product(
        product_id=ids.to_text(wanted.product_id),
        name=content.name,
        description=content.description,
        price=content.price,
        currency=content.currency,
        active=content.active,
        version=version,
        updated_at=clock.to_text(now),
    )


def _values(wanted: Wanted, product: Product, now: datetime, actor: str, traceparent: str) -> dict[str, object]:
    """What PUT_PRODUCT is given."""
    return {
        **asdict(wanted.content),
        "product_id": wanted.product_id,
        "version": product.version,
        "updated_at": now,
        "slice": ids.shard_of(wanted.product_id) % ids.SLICES,
        "event_id": ids.new_id(now),
        "type": (ProductEventType.CREATED if product.version == 1 else ProductEventType.CHANGED).value,
        "data": orjson.dumps({"product": product}).decode(),
        "actor": actor,
        "traceparent": traceparent,
    }


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
