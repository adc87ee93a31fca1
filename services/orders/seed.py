"""`orders seed`: a made-up shop's past, loaded by COPY: products, buyers, and orders with their whole history.

No outbox rows are written for orders: that history was never news.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from io import BytesIO
from random import Random
from typing import Final
from uuid import UUID

import orjson

from services.common import clock, crew, ids
from services.common.db import Row, WriteConnection
from services.common.snapshots import unhurried
from services.contracts.catalog import Product as ToldProduct
from services.contracts.catalog import ProductEventType
from services.orders.histories import Progress, silent
from services.orders.rollups import REMEMBERED_DAYS, add_loaded
from services.orders.seed_model import CURRENCIES, Model, Product
from services.orders.seed_rows import ACTOR, COLUMNS, Rows, Sums, add_order

STOCK: Final = 1_000  # of each product left to sell
_BATCH_ORDERS: Final = 5_000  # some megabytes of text
NAME: Final = "orders seed"
_LOOK_SECONDS: Final = 0.05

# A month's sorts fit; and a month that is attached may wait until another one is.
_BUILDING: Final = "SET LOCAL maintenance_work_mem = '256MB'; SET LOCAL lock_timeout = '10min'"
_MONTHLY: Final = ("orders.orders", "orders.order_items", "orders.order_events")

# What the orders of a month take was received before: on_hand grows by what they still hold, and nothing is oversold.
_MOVE_STOCK: Final = """
WITH stock AS MATERIALIZED (
    SELECT i.*, d.away, d.held
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS d (product_id, away, held)
    JOIN orders.inventory i USING (product_id)
    ORDER BY i.product_id
    FOR NO KEY UPDATE OF i
), received AS (
    INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved, subject, key,
        request_hash, created_at)
    SELECT product_id, version + 1, away + held, 'goods received', $4, on_hand + away + held, reserved, $4, $5, '', $6
    FROM stock
)
UPDATE orders.inventory i
SET on_hand = i.on_hand + s.held, reserved = i.reserved + s.held, version = i.version + 2
FROM stock s
WHERE i.product_id = s.product_id
"""


class AlreadySeededError(Exception):
    """This seed has been loaded, wholly."""


class OtherSeedError(Exception):
    """This seed has been loaded, wholly or in part, with other numbers."""

    def __init__(self, found: Model, stock: int) -> None:
        super().__init__(
            f"seed {found.seed} is of {found.orders:,} orders in {found.months} months up to"
            f" {clock.to_text(found.upto)}, of {found.products:,} products in {', '.join(found.currencies)}"
            f" with a stock of {stock:,}"
        )


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was loaded, this time."""

    products: int
    orders: int
    rows: int
    seconds: float
    buyer: UUID  # who ordered most


@dataclass(frozen=True, slots=True)
class _Loaded:
    orders: int
    rows: int


async def seed(
    owner_url: str,
    *,
    products: int,
    orders: int,
    stock: int = STOCK,
    months: int = 12,
    seed: int = 1,
    currencies: Sequence[str] = CURRENCIES,
    now: datetime | None = None,
    jobs: int = 1,
    progress: Progress = silent,
) -> Seeded:
    """`products` products are for sale, `stock` of each left, and `orders` orders lie in the `months` up to `now`.

    The same numbers and `now` give the same rows. A seed is loaded once: AlreadySeededError when it is all there;
    another seed adds products and orders beside what there is. Products and their stock are one transaction, then each
    month is one (READ COMMITTED), from the last one back, made by `jobs` processes: whatever ends it early, every
    invariant holds, and asked for again with the same numbers it goes on, up to the first `now`; OtherSeedError for
    other numbers. A month without a partition is built beside the others, indexed when it is full, and attached; what
    is of the last month, which orders come into, is copied into its partition.
    """
    started = time.perf_counter()
    asked = Model(seed, products, orders, months, now or clock.now(), tuple(currencies))
    async with unhurried(owner_url, NAME) as connection:
        model, left = await _begin(connection, asked, stock)
        wanted = sum(len(model.numbers_of(month)) for month in left)

        def shown(orders: int, rows: int) -> None:
            progress(f"{rows / (time.perf_counter() - started):,.0f} rows/s", orders, wanted)

        work = [(owner_url, model, month) for month in reversed(left)]
        loaded = [one async for one in crew.shared(NAME, _load_month, work, jobs=jobs, sums=2, progress=shown)]
        progress("statistics", wanted, wanted)
        await connection.execute(f"ANALYZE {', '.join(f'ONLY {table}' for table in _MONTHLY)}, orders.inventory")
    rows = sum(one.rows for one in loaded)
    return Seeded(products, wanted, rows, time.perf_counter() - started, UUID(model.buyer(0).text))


async def _begin(connection: WriteConnection, asked: Model, stock: int) -> tuple[Model, list[datetime]]:
    """The products are there, and the partitions that orders come into; gives the model, and the months to be loaded.

    The model is the one that was begun with, if it was. AlreadySeededError, OtherSeedError.
    """
    async with connection.transaction():
        row = await connection.fetchrow("SELECT * FROM orders.seeds WHERE seed = $1 FOR UPDATE", asked.seed)
        if row is None:
            await _offer(connection, asked, stock)
            model, loaded = asked, set[date]()
        else:
            model, loaded = _begun(row), set(row["loaded"])
            if replace(model, upto=asked.upto) != asked or row["stock_each"] != stock:
                raise OtherSeedError(model, row["stock_each"])
    left = [month for month in model.all_months if month.date() not in loaded]
    if row is not None and not left:
        raise AlreadySeededError
    last = clock.month_of(model.upto)
    for month in (last, clock.add_months(last, 1)):
        await connection.execute("SELECT orders.create_month($1)", month.date())
    for month in left:
        await connection.execute("SELECT payments.create_month($1)", month.date())
    return model, left


def _begun(row: Row) -> Model:
    return Model(
        row["seed"], row["product_count"], row["order_count"], row["month_count"], row["upto"], tuple(row["currencies"])
    )


async def _offer(connection: WriteConnection, model: Model, stock: int) -> None:
    """The products are in the catalogue and known to orders, with their stock; and it is known what is to be loaded."""
    at, offered = model.first, model.offered
    tables: dict[str, tuple[str, list[tuple[object, ...]]]] = {
        "catalog.products": (
            "product_id name description price currency active version updated_at",
            [(p.product_id, p.name, _about(p), p.price, p.currency, True, 1, at) for p in offered],
        ),
        # As anyone else's, so that the topic has every product of the catalogue.
        "catalog.outbox": (
            "slice aggregate_id version event_id type data actor occurred_at",
            [
                (
                    *(ids.shard_of(p.product_id) % ids.SLICES, p.product_id, 1, p.event_id, ProductEventType.CREATED),
                    orjson.dumps({"product": _told(p, at)}).decode(),
                    *(ACTOR, at),
                )
                for p in offered
            ],
        ),
        "orders.products": (
            "product_id name price currency active version",
            [(p.product_id, p.name, p.price, p.currency, True, 1) for p in offered],
        ),
        "orders.inventory": ("product_id on_hand reserved version", [(p.product_id, stock, 0, 1) for p in offered]),
        "orders.inventory_movements": (
            "product_id version delta reason actor on_hand reserved subject key request_hash created_at",
            [(p.product_id, 1, stock, "opening stock", ACTOR, stock, 0, ACTOR, "opening", b"", at) for p in offered],
        ),
        "orders.seeds": (
            "seed upto month_count order_count product_count stock_each currencies",
            [(model.seed, model.upto, model.months, model.orders, model.products, stock, list(model.currencies))],
        ),
    }
    for name, (columns, records) in tables.items():
        schema, table = name.split(".")
        await connection.copy_records_to_table(table, schema_name=schema, columns=columns.split(), records=records)


def _about(product: Product) -> str:
    return f"{product.name}, made up"


def _told(product: Product, at: datetime) -> ToldProduct:
    """As its event tells it."""
    return ToldProduct(
        *(product.text, product.name, _about(product), product.price, product.currency, True),
        version=1,
        updated_at=clock.to_text(at),
    )


async def _load_month(owner_url: str, model: Model, month: datetime, tell: crew.Tell) -> _Loaded:
    """The orders of that month are there, with all that follows from them. One transaction."""
    sums = Sums(clock.to_ms(model.upto - timedelta(days=REMEMBERED_DAYS)))  # or more than need be, and always the same
    orders = rows = 0
    async with unhurried(owner_url, NAME) as connection, connection.transaction():
        await connection.execute(_BUILDING)
        there = await connection.fetchval("SELECT to_regclass($1) IS NOT NULL", f"orders.orders_{month:%Y_%m}")
        if not there:
            await connection.execute("SELECT orders.build_month($1)", month.date())
        for batch in _batches(model, month, sums):
            for table, lines in batch.lines.items():
                apart = table in _MONTHLY and not there
                await _copy(connection, f"{table}_{month:%Y_%m}" if apart else table, COLUMNS[table], lines, new=apart)
            orders += batch.orders
            rows += batch.count
            tell(batch.orders, batch.count)
        if not there:
            await connection.execute("SELECT orders.index_month($1)", month.date())
        await connection.execute(f"ANALYZE {', '.join(f'{table}_{month:%Y_%m}' for table in _MONTHLY)}")
        await _turn(connection, model, month, tell)
        await add_loaded(connection, sums.sales, sums.young)
        if not there:
            await connection.execute("SELECT orders.attach_month($1)", month.date())
        # What live orders wait for comes last.
        moved = sorted(sums.away.keys() | sums.held.keys())
        await connection.execute(
            _MOVE_STOCK,
            *(moved, [sums.away[p] for p in moved], [sums.held[p] for p in moved]),
            *(ACTOR, f"{model.seed}/{month:%Y-%m}", month),
        )
        await connection.execute(
            "UPDATE orders.seeds SET loaded = loaded || $2::date WHERE seed = $1", model.seed, month.date()
        )
    return _Loaded(orders, rows)


async def _turn(connection: WriteConnection, model: Model, month: datetime, tell: crew.Tell) -> None:
    """The next month is loaded: from the last one back there is no gap, and stock moves in the same order each time."""
    after = clock.add_months(month, 1)
    loaded = "SELECT $2 = ANY(loaded) FROM orders.seeds WHERE seed = $1"
    while after <= model.upto and not await connection.fetchval(loaded, model.seed, after.date()):
        tell(0, 0)  # which ends this, should another process have failed
        await asyncio.sleep(_LOOK_SECONDS)


def _batches(model: Model, month: datetime, sums: Sums) -> Iterator[Rows]:
    """All rows of that month, some megabytes at a time."""
    chance = Random(f"lives {model.seed} {month:%Y-%m}")  # noqa: S311 # history, not secrets
    upto_ms, keys_since_ms = clock.to_ms(model.upto), model.keys_since_ms
    rows = Rows()
    for plan in model.plans_of(month):
        add_order(plan, upto_ms, keys_since_ms, chance, rows, sums)
        if rows.orders == _BATCH_ORDERS:
            yield rows
            rows = Rows()
    yield rows


async def _copy(
    connection: WriteConnection, table: str, columns: Sequence[str], lines: Sequence[str], *, new: bool
) -> None:
    """With FREEZE into a `new` table: nobody else sees it yet, and vacuum need not read it again."""
    if not lines:
        return
    schema, name = table.split(".")
    source = BytesIO("".join(lines).encode())
    await connection.copy_to_table(name, schema_name=schema, columns=columns, source=source, format="text", freeze=new)
