"""Which database an operator's command works on, and how it tells how far it is."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from math import inf

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from services.common import clock
from services.common.db import Database
from services.common.db_errors import TransientError
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings

FAILED = 2  # exit code: the command could not do its work. 1 is for an answer that is not good.
console = Console(stderr=True)


SHARE_OF_PRIMARY = 0.5  # of one connection's time: a long reader there rests as long as it has read


@dataclass(frozen=True)
class Source:
    """What a long reader reads, as its owner; and how much of one connection's time all of its own may take."""

    url: str
    share: float


def owner_url() -> str:
    """URL of the owner of the schema: ORDERS_POSTGRES_URL, else of the stack in ORDERS_HOME. Exits when nobody answers.

    Not to be called from a running loop.
    """
    url = Addresses.of(StackSettings()).postgres
    if _reached(url) is None:
        console.print(
            "No database answers. Start the stack with `make up`, or set ORDERS_POSTGRES_URL to its owner's URL."
        )
        raise typer.Exit(FAILED)
    return url


def source(*, primary: bool, fast: bool) -> Source:
    """The replica, where there is one: ORDERS_REPLICA_URL, else of the stack in ORDERS_HOME. Otherwise the primary.

    Exits when it does not answer, and when what should be the replica is none. Not to be called from a running loop.
    """
    replica = None if primary else Addresses.running(StackSettings()).replica_as_owner
    if replica is None:
        return Source(owner_url(), inf if fast else SHARE_OF_PRIMARY)
    match _reached(replica):
        case True:
            return Source(replica, inf)
        case False:
            trouble = "What should be the replica is a primary"
        case None:
            trouble = "The replica does not answer"
    console.print(f"{trouble}. `--primary` reads the primary, in small snapshots.", highlight=False)
    raise typer.Exit(FAILED)


def _reached(url: str) -> bool | None:
    """Whether the database there is in recovery, None when none answers."""

    async def reach() -> bool:
        database = Database(url, application_name="orders", size_max=1)
        await database.open()
        try:
            async with database.session() as connection:
                recovering: bool = await connection.fetchval("SELECT pg_is_in_recovery()")
                return recovering
        finally:
            await database.close()

    try:
        return asyncio.run(reach())
    except TransientError:
        return None


def told_as_of(at: datetime | None) -> str:
    """Where it was read, and how old it is."""
    if at is None:
        return "Read on the primary."
    age = (clock.now() - at).total_seconds()
    return f"Read on the replica, as of {clock.to_text(at)} ({age:,.1f} s ago)."


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
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(verb, total=None)
        yield lambda what, done, total: shown.update(task, description=f"{verb}: {what}", completed=done, total=total)
