"""What anybody may read of the catalogue."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Literal, NamedTuple
from uuid import UUID

from services.catalog.repository import LIST_BY_NAME, LIST_NEWEST, SEARCH, find_product, product_from
from services.common.db import Database, Row
from services.common.db_errors import retried
from services.contracts.catalog import Product

Order = Literal["newest", "name"]

# How far a page goes through an index for products that the filters let through: 3 ms.
WALK_MAX: Final = 3_000
# How many products each way of being found compares: 5 ms. A question of two words looks at a third of it.
CANDIDATES_MAX: Final = 500
# Whoever types more than this has words enough that one of them is right; looking for alike ones would cost 50 ms.
SPELLED_CHARACTERS_MAX: Final = 64
# Of the session (PostgreSQL, appendix F.35): how alike words have to be. With the default of 0.6 one wrong letter in a
# word of six is too much.
SESSION: Final[Mapping[str, str]] = {"pg_trgm.word_similarity_threshold": "0.4"}


@dataclass(frozen=True, slots=True)
class Filters:
    """What products are looked for; prices, [from, to), in minor units of the currency."""

    active: bool = True
    currency: str | None = None
    price_from: int | None = None
    price_to: int | None = None


class Place(NamedTuple):
    """A place in a list: what follows comes after it. `name_key` counts in the order of names only."""

    name_key: str
    product_id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """Some products, and where to go on; a short page, or an empty one, may still have a `next_place`."""

    products: tuple[Product, ...]
    next_place: Place | None


FIRST: Final[Mapping[Order, Place]] = {"newest": Place("", UUID(int=2**128 - 1)), "name": Place("", UUID(int=0))}


async def get_product(database: Database, product_id: UUID) -> Product | None:
    """The product as it stands, None when there is none. 503 `unavailable`. One index read."""
    return await retried(partial(find_product, database, product_id))


async def list_products(database: Database, order: Order, filters: Filters, *, after: Place | None, limit: int) -> Page:
    """The next `limit` products after a place, by their ids with the newest first, or by name in small letters.

    503 `unavailable`. One index range of at most WALK_MAX entries, and as many reads by primary key as products.
    """
    start = after or FIRST[order]
    narrowed = filters.currency is not None or filters.price_from is not None or filters.price_to is not None
    rows = await database.read(
        LIST_NEWEST if order == "newest" else LIST_BY_NAME,
        **asdict(filters),
        from_id=start.product_id,
        from_name=start.name_key,
        after_id=None if after is None else after.product_id,
        walk=WALK_MAX if narrowed else limit + 1,
        limit=limit + 1,  # the one more tells that there is more
    )
    found = [row for row in rows if row["product_id"] is not None]
    return Page(tuple(map(product_from, found[:limit])), _next(found, rows[0], limit))


def _next(found: list[Row], walked: Row, limit: int) -> Place | None:
    if len(found) > limit:
        return Place(found[limit - 1]["name_key"], found[limit - 1]["product_id"])
    if walked["walked_to_id"] is not None:
        return Place(walked["walked_to_name"] or "", walked["walked_to_id"])
    return None


async def search_products(database: Database, q: str, filters: Filters, *, limit: int) -> tuple[Product, ...]:
    """The `limit` products that answer `q` best, best first: by name, by words, by words spelled alike.

    503 `unavailable`, also when it takes too long. Three index ranges, each of at most CANDIDATES_MAX products.
    """
    rows = await database.read(
        SEARCH,
        **asdict(filters),
        q=q,
        limit=limit,
        candidates=CANDIDATES_MAX,
        spelled_characters=SPELLED_CHARACTERS_MAX,
    )
    return tuple(map(product_from, rows))


async def look(database: Database) -> None:
    """Products can be read. TransientError when the database does not answer."""
    await database.rows(
        LIST_NEWEST, **asdict(Filters()), from_id=FIRST["newest"].product_id, after_id=None, walk=1, limit=1
    )
