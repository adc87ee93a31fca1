"""`orders outbox`: what has not reached Kafka yet, who carries it, and what was parked."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, TypeVar
from uuid import UUID

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.target import failures_told, owner_url
from services.common import clock, db, ids
from services.common.db import Database
from services.relay.invalidations import INVALIDATIONS
from services.relay.outboxes import OUTBOXES, observing

T = TypeVar("T")

# Index: primary key of slices.
_RELAYS = db.statement(
    "outbox_relays",
    """
SELECT s.outbox, s.relay, count(*) AS slices, coalesce(m.expires_at > now(), FALSE) AS live
FROM relay.slices s LEFT JOIN relay.members m USING (outbox, relay)
GROUP BY s.outbox, s.relay, live ORDER BY s.outbox, s.relay
""",
    {},
)

# The first row of each aggregate is the one that cannot be sent; the others wait for it. Index: primary key.
_PARKED = db.statement(
    "outbox_parked",
    """
SELECT DISTINCT ON (outbox, aggregate_id) outbox, aggregate_id, version, reason, parked_at,
       count(*) OVER (PARTITION BY outbox, aggregate_id) - 1 AS waiting
FROM relay.parked ORDER BY outbox, aggregate_id, position
""",
    {},
)


def outbox(
    parked: Annotated[bool, typer.Option("--parked", help="What cannot be sent, why, and what waits for it.")] = False,
    release: Annotated[
        str, typer.Option(metavar="ID", help="Have the parked rows of this order or product tried again.")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show how many events wait for Kafka (and invalidations for the cache), since when, and which relay has what.

    A released row is tried again at once, with all that wait for it; what still cannot be sent is parked again. So
    first mend what `--parked` says. Exit code 1: nothing is parked under that id. 2: it could not be done.
    """
    if release:
        _release(release, as_json=as_json)
    elif parked:
        _show_parked(as_json=as_json)
    else:
        _show(as_json=as_json)


def _run(work: Callable[[Database], Awaitable[T]]) -> T:
    """What `work` gives, on the database as its owner."""
    url = owner_url()

    async def run() -> T:
        database = Database(url, application_name="orders outbox", size_max=1)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    with failures_told():
        return asyncio.run(run())


def _show(*, as_json: bool) -> None:
    async def read(database: Database) -> tuple[list[Any], list[Any]]:
        return await database.rows(observing((*OUTBOXES, *INVALIDATIONS))), await database.rows(_RELAYS)

    outboxes, relays = _run(read)
    if as_json:
        found = [
            {
                "outbox": row["outbox"],
                "waiting": row["depth"],
                "oldest_at": row["oldest_at"] and clock.to_text(row["oldest_at"]),
                "parked": row["parked"],
                "relays": {
                    one["relay"]: one["slices"] for one in relays if one["outbox"] == row["outbox"] and one["live"]
                },
            }
            for row in outboxes
        ]
        typer.echo(orjson.dumps(found))
        return
    table = Table("outbox", "waiting", "oldest", "parked", "relay", "slices", box=None)
    for row in outboxes:
        first = (row["outbox"], f"{row['depth']:,}", _age(row["oldest_at"]), f"{row['parked']:,}")
        for one in (one for one in relays if one["outbox"] == row["outbox"]):
            name = one["relay"] or "(none)"
            table.add_row(*first, name if one["live"] or not one["relay"] else f"{name} (gone)", str(one["slices"]))
            first = ("", "", "", "")
    Console().print(table)


def _show_parked(*, as_json: bool) -> None:
    async def read(database: Database) -> list[Any]:
        return await database.rows(_PARKED)

    rows = [{**row, "aggregate_id": ids.to_text(row["aggregate_id"])} for row in _run(read)]
    if as_json:
        typer.echo(orjson.dumps([{**row, "parked_at": clock.to_text(row["parked_at"])} for row in rows]))
        return
    table = Table("outbox", "id", "version", "since", "waiting behind", "reason", box=None)
    for row in rows:
        table.add_row(
            *(row["outbox"], row["aggregate_id"], str(row["version"]), clock.to_text(row["parked_at"])),
            *(f"{row['waiting']:,}", escape(row["reason"])),
        )
    Console(soft_wrap=True).print(table)


def _release(text: str, *, as_json: bool) -> None:
    aggregate_id = _id(text)

    async def released(database: Database) -> list[dict[str, Any]]:
        return [
            {"outbox": one.name, "versions": versions}
            for one in OUTBOXES
            if (versions := await one.release(database, aggregate_id))
        ]

    found = _run(released)
    if as_json:
        typer.echo(orjson.dumps(found))
    for one in found if not as_json else ():
        typer.echo(f"{one['outbox']}: versions {', '.join(map(str, one['versions']))} are in the outbox again.")
    if not found:
        typer.echo(f"Nothing is parked under {text}; `orders outbox --parked` lists what is.", err=True)
        raise typer.Exit(1)


def _id(text: str) -> UUID:
    try:
        return ids.from_text(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is no id of an order or a product", param_hint="--release") from error


def _age(since: datetime | None) -> str:
    return "" if since is None else f"{(clock.now() - since).total_seconds():,.1f} s"
