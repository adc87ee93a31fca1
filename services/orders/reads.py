"""What is read through the cache: orders and stock, as the bytes of their answers. Whoever decides reads none."""

from collections.abc import Callable
from uuid import UUID

from services.common import ids
from services.common.cache import Cache, read_through
from services.common.cached import Answer, Entry, Key
from services.common.db import Database
from services.common.ids import OrderKey
from services.contracts.cache import INVENTORY, ORDER
from services.orders import answers, queries
from services.orders.queries import Reader


async def get_order(
    database: Database,
    cache: Cache | None,
    order_id: str,
    owner: str | None,
    *,
    asked: Callable[[], tuple[OrderKey, Reader]],
    min_version: int,
) -> Answer:
    """The answer of the order with that ULID text; a cached one has `min_version`, one from the database may be older.

    404 `not_found` when it is missing or not `owner`'s (None: anybody's will do). One round trip to the cache, or up to
    three and the database's, which alone is `asked` where it is and who reads, and refuses what can be nowhere.
    """

    async def load() -> Entry | None:
        order = await queries.get_order(database, *asked())
        return None if order is None else Entry(order["user_id"], order["version"], answers.render_order(order))

    return await read_through(cache, Key(ORDER, order_id), load, reader=owner, min_version=min_version)


async def get_stock(database: Database, cache: Cache | None, product_id: UUID) -> Answer:
    """The answer about a product's stock, for anybody. 404 `not_found`. Round trips as of `get_order`."""
    product_text = ids.to_text(product_id)

    async def load() -> Entry | None:
        found = await queries.get_stock(database, product_id)
        if found is None:
            return None
        body = answers.render_stock(product_text, on_hand=found.on_hand, reserved=found.reserved, version=found.version)
        return Entry("", found.version, body)

    return await read_through(cache, Key(INVENTORY, product_text), load)
