"""`orders verify`: every invariant of the database."""

import asyncio
import os
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from services.cli.payments import reconciled, tell
from services.cli.target import bar, failures_told, owner_url, source, told_as_of
from services.common import clock, log
from services.orders import invariants
from services.orders.verdicts import SHOWN_MAX, Report

_JOBS = min(2, os.cpu_count() or 1)  # each takes some 50 MB, this process and what they are forked from 110


def verify(
    jobs: Annotated[int, typer.Option(min=1, help="Processes that share the months.")] = _JOBS,
    primary: Annotated[bool, typer.Option("--primary", help="Read the primary although there is a replica.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="On the primary, read without resting.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Check every invariant of the database, and reconcile payments with orders and their provider (`orders payments`).

    Reads the replica where there is one, else the primary in small snapshots, resting as long as it has read. Changes
    nothing and locks nothing; orders may be placed meanwhile. While the provider is away the rest is checked, and it
    says so. Exit code 0: all hold. 1: one is violated; it says which, where, and what to do. 2: it could not be
    checked.
    """
    log.configure("orders-verify", "WARNING")
    url, read = owner_url(), source(primary=primary, fast=fast)
    with failures_told(), bar("verify") as progress:
        report = asyncio.run(invariants.verify(read.url, jobs=jobs, share=read.share, progress=progress))
        progress("payments", 0, 1)
        found = asyncio.run(reconciled(url, read))
    ok = not report.violated and not found.findings
    if as_json:
        told = {"findings": found.findings, "unchecked": found.unchecked}
        rows = [asdict(verdict) for verdict in report.verdicts]
        where = {"replica": report.as_of is not None, "as_of": report.as_of and clock.to_text(report.as_of)}
        typer.echo(orjson.dumps({"ok": ok, **where, "invariants": rows, "payments": told}))
    else:
        _show(report)
        tell(found)
    raise typer.Exit(0 if ok else 1)


def _show(report: Report) -> None:
    table = Table("invariant", "holds", "rows", "seconds", box=None)
    for verdict in report.verdicts:
        holds = "[red]no[/red]" if verdict.violations else "yes"
        table.add_row(verdict.name, holds, f"{verdict.rows:,}", f"{verdict.seconds:.2f}")
    output = Console()
    output.print(table)
    for verdict in report.verdicts:
        for message in verdict.messages:
            output.print(message, markup=False, highlight=False, soft_wrap=True)
        if len(verdict.violations) == SHOWN_MAX:
            output.print(f"{verdict.name}: there may be more; {SHOWN_MAX} are shown.")
    output.print(told_as_of(report.as_of), highlight=False)
    if report.repeated:
        output.print(f"{report.repeated} snapshots were lost, and taken again.", highlight=False)
