"""What partitions cost: 12, 24 and 120 months of them, each against one table with the same rows and indexes."""

import re
from typing import Final

from loadtests.bench import loaded
from loadtests.bench.loaded import Past
from loadtests.bench.measure import Comparison
from loadtests.bench.stage import Connection, Stage
from services.common import clock

_MONTHS, _QUICK_MONTHS = (12, 24, 120), (12,)
_ORDERS, _QUICK_ORDERS = 120_000, 120
_TABLES: Final = ("orders", "order_events")


async def comparisons(stage: Stage) -> list[Comparison]:
    """An order by its id, a buyer's newest page, and the same by status."""
    connection, now = await stage.connected(), clock.now()
    found = []
    for months in _QUICK_MONTHS if stage.quick else _MONTHS:
        past = Past(_QUICK_ORDERS if stage.quick else _ORDERS, months, now)
        single, partitioned = f"bench_single_{months}", f"bench_months_{months}"
        await _create(connection, single, None)
        await _create(connection, partitioned, past)
        for schema in (single, partitioned):
            await loaded.load(connection, schema, past, loaded.ORDERS_AND_EVENTS)
        for name, given in (
            ("get", loaded.get(past)),
            ("list", loaded.newest(past)),
            ("status", loaded.newest(past, loaded.STATUS)),
        ):
            sides = [
                loaded.side(stage.postgres_url, told, given, _moved(given[0].sql, schema))
                for told, schema in ((f"{months} partitions", partitioned), ("one table", single))
            ]
            found.append(Comparison(f"partitions {months} {name}", "statements", sides))
    return found


def _moved(sql: str, schema: str) -> str:
    """The same of the tables in `schema`."""
    return re.sub(rf"\borders\.({'|'.join(_TABLES)})\b", rf"{schema}.\1", sql)


async def _create(connection: Connection, schema: str, past: Past | None) -> None:
    """The tables, with the columns, constraints and indexes of ours; with `past` in partitions of its months."""
    await connection.execute(f"CREATE SCHEMA {schema}")
    for table in _TABLES:
        like = f"{schema}.{table} (LIKE orders.{table} INCLUDING ALL)"
        if past is None:
            await connection.execute(f"CREATE TABLE {like}")
            continue
        await connection.execute(f"CREATE TABLE {like} PARTITION BY RANGE (created_at)")
        for number in range(past.months):
            first, after = (clock.add_months(past.first, n).date() for n in (number, number + 1))
            await connection.execute(
                f"CREATE TABLE {schema}.{table}_{first:%Y_%m} PARTITION OF {schema}.{table}"
                f" FOR VALUES FROM ('{first}') TO ('{after}')"
            )
