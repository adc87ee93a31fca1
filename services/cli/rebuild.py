"""`orders rebuild`: the rows of orders, their lines, the stock and the rollups, from the events."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import orjson
import typer

from services.cli.target import bar, failures_told, owner_url
from services.orders import rebuild as rebuilding


def rebuild(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Recreate orders and their lines from their events, stock and rollups from both. Safe while orders are taken.

    Exit code 0: all is what the events tell. 1: something was left, it says what and why. 2: it ended early; what is
    done stays, run it again.
    """
    url = owner_url()
    with failures_told(), bar("rebuild") as progress:
        result = asyncio.run(rebuilding.rebuild(url, progress=progress))
    if as_json:
        typer.echo(orjson.dumps(asdict(result)))
    else:
        typer.echo(
            f"{result.orders:,} orders read, {result.written:,} written anew; stock of {result.products:,} products"
            f" and {result.rollups:,} rows of rollups set"
        )
        for left in result.left:
            typer.echo(f"left: {left}")
    raise typer.Exit(1 if result.left else 0)
