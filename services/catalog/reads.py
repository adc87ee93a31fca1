"""What is read through the cache: a product, as the bytes of its answer."""

from uuid import UUID

import orjson

from services.catalog import queries
from services.common import ids
from services.common.cache import Cache, read_through
from services.common.cached import Answer, Entry, Key
from services.common.db import Database
from services.contracts.cache import PRODUCT


async def get_product(database: Database, cache: Cache | None, product_id: UUID) -> Answer:
    """The product's answer, for anybody. 404 `not_found`.

    One round trip to the cache, or up to three and the database's.
    """

    async def load() -> Entry | None:
        product = await queries.get_product(database, product_id)
        return None if product is None else Entry("", product.version, orjson.dumps(product))

    return await read_through(cache, Key(PRODUCT, ids.to_text(product_id)), load)
