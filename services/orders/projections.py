"""What orders keep of others' events. One function applies one batch of one topic, in one transaction."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import ids
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.inbox import Arrival, Verdict, arrival
from services.common.money import PRICE_MAX
from services.common.schemas import VERSION_MAX
from services.common.stream import Received
from services.contracts.catalog import Product, ProductEventType, product_of
from services.orders import rollups
from services.orders.repository import COPY_PRODUCTS, INBOX

_KNOWN: Final = frozenset(ProductEventType)


async def copy_products(database: Database, topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
    """orders.products is as the newest of `messages` say, and never older than it was; gives the outcomes.

    Stock rows that exist take the version with it; they are made by the first adjustment, never here.
    One READ COMMITTED transaction: inbox rows in the order of their keys, then products and stock by product_id.
    A product event carries the whole product, so a gap applies and is only counted (on a compacted topic it is usual).
    Other types change nothing but the inbox. PoisonError before anything is written; TransientError, LockTimeoutError.
    """
    read = [_read(message) for message in messages]
    outcomes: Counter[str] = Counter()
    newest: dict[UUID, Product] = {}
    async with database.transaction() as connection:
        verdicts = await INBOX.judge(connection, topic, [arrived for arrived, _ in read])
        for (_, product), verdict in zip(read, verdicts, strict=True):
            if verdict is Verdict.STALE:
                outcomes["stale"] += 1
            elif product is None:
                outcomes["ignored"] += 1
            else:
                outcomes["applied" if verdict is Verdict.NEXT else "applied_after_gap"] += 1
                newest[ids.from_text(product.product_id)] = product
        if newest:
            products = newest.values()
            await COPY_PRODUCTS.rows(
                connection,
                product_ids=list(newest),
                names=[product.name for product in products],
                prices=[product.price for product in products],
                currencies=[product.currency for product in products],
                actives=[product.active for product in products],
                versions=[product.version for product in products],
            )
    return outcomes


async def count_sales(database: Database, _topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
    """What the orders of `messages` have sold is in the rollups, each event once; gives the outcomes.

    One READ COMMITTED transaction, however many events: a day's row is written once. Only keys and versions are read of
    the messages; events that come no more are counted with the next one of their order. PoisonError for what is no
    order or not in the log.
    """
    newest: dict[UUID, int] = {}
    said: dict[UUID, Received] = {}
    arrived = [(_order_id(message), arrival(message).version) for message in messages]
    for message, (order_id, version) in zip(messages, arrived, strict=True):
        if version > newest.get(order_id, 0):
            newest[order_id], said[order_id] = version, message
    async with database.transaction() as connection:
        try:
            counted = await rollups.count(connection, newest)
        except rollups.UncountableError as error:
            raise PoisonError(said[error.order_id], str(error)) from error
    return Counter("stale" if version <= counted.get(order_id, version) else "applied" for order_id, version in arrived)


def _order_id(message: Received) -> UUID:
    arrived = arrival(message)
    try:
        if arrived.version > VERSION_MAX:
            raise ValueError(f"no order has a version {arrived.version}")
        return ids.order_key(ids.from_text(arrived.key)).order_id
    except ValueError as error:
        raise PoisonError(message, f"its key is no order id, or its version none: {error}") from error


def _read(message: Received) -> tuple[Arrival, Product | None]:
    """What has arrived, and the product of it; None for a type that is not known. PoisonError."""
    arrived = arrival(message)
    if arrived.type not in _KNOWN:
        return arrived, None
    try:
        event = orjson.loads(message.value)
        product = product_of(event)
        told = (event["product_id"], event["version"], product.product_id, product.version)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise PoisonError(message, f"it is no product event: {error!r}") from error
    if told != (arrived.key, arrived.version) * 2:
        raise PoisonError(message, f"key and ce_sequence say {arrived.key} {arrived.version}, the body {told}")
    if (wrong := _wrong(product)) is not None:
        raise PoisonError(message, wrong)
    return arrived, product


def _wrong(product: Product) -> str | None:
    """Why the table would not take it."""
    text: Any  # whatever JSON has, as types are only promised
    if type(product.version) is not int:
        return f"its version is no integer: {product.version!r}"
    for name, text in (("name", product.name), ("currency", product.currency)):
        if not isinstance(text, str) or "\0" in text:
            return f"its {name} is no text: {text!r}"
    if type(product.active) is not bool:
        return f"active is neither true nor false: {product.active!r}"
    if type(product.price) is not int or not 1 <= product.price <= PRICE_MAX:
        return f"its price is not 1 to {PRICE_MAX}: {product.price!r}"
    try:
        ids.from_text(product.product_id)
    except ValueError as error:
        return f"its product_id is no ULID: {error}"
    return None
