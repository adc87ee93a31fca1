"""`orders partitions`: the months there are, and more of them."""

import asyncio
from datetime import date
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from services.cli.target import failures_told, owner_url
from services.common import clock
from services.common.db import Database
from services.orders import commands
from services.orders.repository import statement

# The catalogue only: rows are those of the last ANALYZE.
_PARTITIONS = statement(
    "list_partitions",
    """
SELECT first_on, parent, partition, rows_estimated AS rows,
       pg_total_relation_size(format('orders.%I', partition)::regclass) AS bytes
FROM orders.months
ORDER BY first_on, parent
""",
)


def partitions(
    create_ahead: Annotated[
        int | None, typer.Option(min=0, max=24, help="Make this month's partitions and those of so many after it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON array on stdout, one object a partition.")] = False,
) -> None:
    """List the partitions with the rows of the last ANALYZE and their size on disk; make months ahead.

    Exit code 2: a month could not be made (a lock was not granted within 2 s); what is made stays, run it again.
    """
    url = owner_url()
    with failures_told():
        made, found = asyncio.run(_partitions(url, create_ahead))
    if as_json:
        typer.echo(orjson.dumps(found))
        return
    table = Table("month", "partition", "rows", "MiB", box=None)
    for row in found:
        table.add_row(f"{row['first_on']:%Y-%m}", row["partition"], f"{row['rows']:,}", f"{row['bytes'] / 2**20:,.1f}")
    Console().print(table)
    for month in made:
        typer.echo(f"made {month:%Y-%m}")


async def _partitions(url: str, create_ahead: int | None) -> tuple[list[date], list[dict[str, Any]]]:
    database = Database(url, application_name="orders partitions", size_max=1)
    await database.open()
    try:
        made = []
        if create_ahead is not None:
            made = await commands.create_months(database, clock.month_of(clock.now()), create_ahead)
        async with database.session() as connection:
            return [month.date() for month in made], [dict(row) for row in await _PARTITIONS.rows(connection)]
    finally:
        await database.close()
