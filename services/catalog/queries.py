"""What anybody may read of the catalogue."""

from dataclasses import dataclass
from functools import partial
from uuid import UUID

from services.catalog.repository import LIST_PRODUCTS, find_product, product_from
from services.common.db import Database, retried
from services.common.errors import not_found
from services.contracts.catalog import Product


@dataclass(frozen=True, slots=True)
class Page:
    """Some products in the order of their ids, and the id to go on with."""

    products: tuple[Product, ...]
    next_id: UUID | None


async def get_product(database: Database, product_id: UUID) -> Product:
    """The product as it stands. 404 `not_found`, 503 `unavailable`. One index read."""
    product = await retried(partial(find_product, database, product_id))
    if product is None:
        raise not_found()
    return product


async def list_products(database: Database, *, from_id: UUID, limit: int) -> Page:
    """The first `limit` products with an id of `from_id` or after it. 503 `unavailable`. One index range."""
    rows = await database.read(LIST_PRODUCTS, from_id=from_id, limit=limit + 1)  # the one more tells where to go on
    next_id = rows[limit]["product_id"] if len(rows) > limit else None
    return Page(tuple(map(product_from, rows[:limit])), next_id)


async def look(database: Database) -> None:
    """Products can be read. TransientError when the database does not answer."""
    await database.rows(LIST_PRODUCTS, from_id=UUID(int=0), limit=1)
