"""`orders seed`: generated products, buyers and orders, for development, demos and measurements."""

import asyncio
import os
from dataclasses import asdict
from typing import Annotated

import orjson
import typer

from services.cli.target import FAILED, bar, console, failures_told, owner_url
from services.orders import seed as seeding

_JOBS = max(1, os.cpu_count() or 1)


def seed(
    products: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many products.")] = 1_000,
    orders: Annotated[int, typer.Option(min=0, help="How many orders, with their whole history.")] = 0,
    months: Annotated[int, typer.Option(min=1, max=120, help="Months they are spread over, this one included.")] = 12,
    stock: Annotated[int, typer.Option(min=0, help="Units of each product that are left to sell.")] = 1_000,
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the months.")] = _JOBS,
    number: Annotated[int, typer.Option("--seed", help="The same seed makes the same shop; loaded once only.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Load generated history by COPY. Nothing of its orders goes to Kafka: it was never news.

    Exit code 2: it was not loaded, or not all of it; the months that are loaded are whole, and the same command goes on
    with the others. A seed is not loaded twice.
    """
    url = owner_url()
    with failures_told(), bar("seed") as progress:
        try:
            loaded = asyncio.run(
                seeding.seed(
                    url,
                    products=products,
                    orders=orders,
                    stock=stock,
                    months=months,
                    seed=number,
                    jobs=jobs,
                    progress=progress,
                )
            )
        except seeding.AlreadySeededError as error:
            console.print(f"Seed {number} has been loaded before. Choose another with --seed.")
            raise typer.Exit(FAILED) from error
        except seeding.OtherSeedError as error:
            console.print(f"Begun with other numbers: {error}. Choose another with --seed.", highlight=False)
            raise typer.Exit(FAILED) from error
    if as_json:
        typer.echo(orjson.dumps(asdict(loaded)))
    else:
        typer.echo(
            f"{loaded.products:,} products and {loaded.orders:,} orders, {loaded.rows:,} rows in {loaded.seconds:.1f} s"
            f" ({loaded.rows / loaded.seconds:,.0f} rows/s); most were bought by {loaded.buyer}"
        )
