"""Which database an operator's command works on, and how it tells how far it is."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from services.common.db import Database, TransientError
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings

FAILED = 2  # exit code: the command could not do its work. 1 is for an answer that is not good.
console = Console(stderr=True)


def owner_url() -> str:
    """URL of the owner of the schema: ORDERS_POSTGRES_URL, else of the stack in ORDERS_HOME. Exits when nobody answers.

    Not to be called from a running loop.
    """
    url = Addresses.of(StackSettings()).postgres

    async def reach() -> None:
        database = Database(url, application_name="orders", size_max=1)
        await database.open()
        await database.close()

    try:
        asyncio.run(reach())
    except TransientError as error:
        console.print(
            "No database answers. Start the stack with `make up`, or set ORDERS_POSTGRES_URL to its owner's URL."
        )
        raise typer.Exit(FAILED) from error
    return url


@contextmanager
def failures_told() -> Iterator[None]:
    """What goes wrong is told in a line on stderr, and the exit code is FAILED."""
    try:
        yield
    except (typer.Exit, KeyboardInterrupt):
        raise
    except Exception as error:  # whatever it is, 1 would mean something else
        console.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from error


@contextmanager
def bar(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr while a person watches: call with what is done, and how much of how much."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(verb, total=None)
        yield lambda what, done, total: shown.update(task, description=f"{verb}: {what}", completed=done, total=total)
