"""`orders payments`: how payments stand; one of them with its steps; all of them against orders and provider."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.cli.target import FAILED, Source, console, failures_told, owner_url, source
from services.common import clock, db
from services.common.db import Database
from services.common.snapshots import Snapshots, unhurried_database
from services.embedded.settings import HOST, SANDBOX, StackSettings
from services.orders.histories import as_of
from services.payments import queries
from services.payments.provider import Provider
from services.payments.providers import opened
from services.payments.reconciler import RULES, Reconciliation, reconcile
from services.payments.settings import PaymentsSettings

T = TypeVar("T")
GRACE_SECONDS = 300  # longer than events and answers take, unless a part is away
DAYS = 7

_STANDING = db.statement(
    "payments_standing",
    """
SELECT 'payments' AS what, status AS state, count(*) AS count FROM payments.payments GROUP BY status
UNION ALL
SELECT 'steps', state, count(*) FROM payments.steps GROUP BY state
ORDER BY what, state
""",
    {},
)


def payments(
    order_id: Annotated[str, typer.Argument(metavar="[ORDER_ID]", help="The payment of this order.")] = "",
    all_: Annotated[
        bool, typer.Option("--reconcile", help="Hold orders, payments and the provider's ledger against each other.")
    ] = False,
    days: Annotated[int, typer.Option(min=1, help="Of the ledger, what has changed for so long.")] = DAYS,
    grace_seconds: Annotated[
        int, typer.Option(min=0, help="What is younger is not held against anybody.")
    ] = GRACE_SECONDS,
    primary: Annotated[
        bool, typer.Option("--primary", help="Reconcile on the primary although there is a replica.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show how many payments and steps are in which state; of one order its payment and what was asked for it.

    The provider is the one payments-worker has: ORDERS_PAYMENT_PROVIDER, ORDERS_PROVIDER_URL. Exit code 1: something
    differs, or the order has no payment. 2: it could not be looked at, or of `--reconcile` only the provider's ledger.
    """
    if all_:
        _reconcile(days, grace_seconds, primary=primary, as_json=as_json)
    elif order_id:
        _show_one(order_id, as_json=as_json)
    else:
        _show(as_json=as_json)


async def reconciled(
    url: str, read: Source, *, days: int = DAYS, grace_seconds: float = GRACE_SECONDS
) -> Reconciliation:
    """What the reconciler finds in the database at `url`, its owner's, and at the provider of these settings.

    Orders and payments are read where `read` says, which may be the replica.
    """
    now = clock.now()
    async with _database(url) as database, _database(read.url) as copy, _provider() as provider:
        async with copy.session() as connection:
            pages_at = await as_of(connection)
        return await reconcile(
            database,
            provider,
            now=now,
            grace=timedelta(seconds=grace_seconds),
            since=now - timedelta(days=days),
            pages=Snapshots(copy, share=read.share),
            pages_at=pages_at,
        )


def _database(url: str) -> AbstractAsyncContextManager[Database]:
    """Sessions as for a request, as most that is read here is short: the reconciler makes what is long unhurried."""
    return unhurried_database(url, "orders payments", connections=2, settings={})


@asynccontextmanager
async def _provider() -> AsyncIterator[Provider | None]:
    """None for another's database without its provider: the sandbox of this stack knows nothing of it."""
    settings, stack = PaymentsSettings(), StackSettings()
    if settings.payment_provider == "sandbox" and stack.postgres_url and not stack.provider_url:
        yield None
        return
    provider = opened(
        settings.payment_provider,
        url=stack.provider_url or f"http://{HOST}:{stack.port(SANDBOX)}",
        timeout_seconds=settings.provider_deadline_seconds,
        stripe_key=settings.stripe_key.get_secret_value(),
        stripe_url=settings.stripe_url,
    )
    try:
        yield provider
    finally:
        await provider.aclose()


def _run(work: Callable[[Database], Awaitable[T]]) -> T:
    """What `work` gives, on the database as its owner."""
    url = owner_url()

    async def run() -> T:
        async with _database(url) as database:
            return await work(database)

    with failures_told():
        return asyncio.run(run())


def _show(*, as_json: bool) -> None:
    async def read(database: Database) -> tuple[list[Any], float]:
        return await database.rows(_STANDING), await queries.oldest_due_seconds(database)

    rows, oldest = _run(read)
    if as_json:
        found: dict[str, Any] = {"payments": {}, "steps": {}, "oldest_due_seconds": oldest}
        for row in rows:
            found[row["what"]][row["state"]] = row["count"]
        typer.echo(orjson.dumps(found))
        return
    table = Table("what", "state", "count", box=None)
    for row in rows:
        table.add_row(row["what"], row["state"], f"{row['count']:,}")
    Console().print(table)
    typer.echo(f"The step that waits longest has been due for {oldest:,.1f} s.")


def _show_one(order_id: str, *, as_json: bool) -> None:
    try:
        payment, steps = _run(lambda database: queries.get_payment(database, order_id))
    except ValueError as error:
        raise typer.BadParameter(f"{order_id!r} is no id of an order") from error
    if payment is None:
        typer.echo(f"Order {order_id} has no payment.", err=True)
        raise typer.Exit(1)
    if as_json:
        typer.echo(orjson.dumps({"payment": payment, "steps": steps}))
        return
    for name in payment.__slots__:
        typer.echo(f"{name:18} {getattr(payment, name)}")
    table = Table("step", "kind", "amount", "state", "tries", "asked", "due", "ended", "why", box=None)
    for step in steps:
        table.add_row(
            *(str(step["number"]), step["kind"], f"{step['amount']:,}", step["state"], str(step["attempts"])),
            *(step["asked_at"], step["due_at"] or "", step["ended_at"] or "", escape(step["error"] or "")),
        )
    Console(soft_wrap=True).print(table)


def _reconcile(days: int, grace_seconds: int, *, primary: bool, as_json: bool) -> None:
    url, read = owner_url(), source(primary=primary, fast=False)
    with failures_told():
        found = asyncio.run(reconciled(url, read, days=days, grace_seconds=grace_seconds))
    if as_json:
        ok = not found.findings and found.unchecked is None
        typer.echo(orjson.dumps({"ok": ok, "findings": found.findings, "unchecked": found.unchecked}))
    else:
        tell(found)
    raise typer.Exit(1 if found.findings else FAILED if found.unchecked else 0)


def tell(found: Reconciliation) -> None:
    """Each finding in a line that ends with its repair."""
    for finding in found.findings:
        typer.echo(f"{finding.rule}: {finding.order_id}: {finding.detail}. {RULES[finding.rule]}")
    if found.unchecked:
        console.print(f"The provider's ledger was not compared: {escape(found.unchecked)}", soft_wrap=True)
    if not found.findings:
        typer.echo("Orders and payments agree" + ("." if found.unchecked else ", and the provider's ledger with them."))
