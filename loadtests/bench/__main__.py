"""Ours against the limit, alternately in one run; what each row compares stands in docs/performance.md.

Needs `wrk` for rows of the HTTP API. The machine should be quiet, and the figures of one run are comparable only with
each other. Exit code 2: a row could not be run, or its run is void.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import orjson

from loadtests.bench import machine, results, stage, wrk
from loadtests.bench.machine import NotDurableError
from loadtests.bench.measure import Plan, Result, VoidError, alternate, summary
from loadtests.bench.rows import PROGRAMS, ROWS
from loadtests.bench.said import say
from loadtests.machine import ROOT
from services.common import log
from services.embedded.errors import StackError
from services.embedded.supervisor import stop_on_signals

FAILED = 2
ORDERS, QUICK_ORDERS = 500, 20
QUICK = Plan(rounds=1, seconds=0.05, warm_seconds=0, quick=True)
WARM_SECONDS = 2.0
SIZES = (20_000, 200_000)


def main(arguments: Sequence[str]) -> int:
    """Run as the command line says; its exit code."""
    if arguments and arguments[0] in PROGRAMS:
        os.execv(sys.executable, [sys.executable, "-m", f"loadtests.bench.{arguments[0]}", *arguments[1:]])  # noqa: S606
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.list:
        for name, told in {**{name: row.told for name, row in ROWS.items()}, **PROGRAMS}.items():
            say(f"{name:12} {told}")
        return 0
    if given.table:
        return _tabulate(given.out)
    unknown = [name for name in given.names if name not in ROWS]
    if unknown or not given.names:
        parser.error(f"not a row: {' '.join(unknown)}; see --list" if unknown else "which row? see --list")
    plan = QUICK if given.quick else Plan(given.rounds, given.seconds, WARM_SECONDS, quick=False)
    log.configure("bench", "WARNING")
    try:
        asyncio.run(run(given.names, plan, tuple(given.sizes), given.out))
    except (VoidError, NotDurableError, StackError) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return 0


async def run(names: Sequence[str], plan: Plan, sizes: tuple[int, ...], out: Path) -> None:
    """The rows on a stage of their own."""
    processes = {process for name in names for process in ROWS[name].processes}
    if processes:
        wrk.require()
    orders = QUICK_ORDERS if plan.quick else ORDERS
    with stop_on_signals():
        async with stage.opened(processes, orders=orders, quick=plan.quick, sizes=sizes) as opened:
            await measured(opened, names, plan, out)
        return
    raise VoidError("ended by a signal; what was done until then is kept")


async def measured(opened: stage.Stage, names: Sequence[str], plan: Plan, out: Path) -> list[Result]:
    """The rows one after another; each is told, and in `out`, as soon as it is done."""
    facts = await machine.facts(opened.postgres_url, opened.stack.settings.home, sync_rate=not plan.quick)
    say(orjson.dumps(facts).decode())
    found = []
    for name in names:
        for comparison in await ROWS[name].comparisons(opened):
            result = await alternate(comparison, plan, opened.postgres_cpu)
            for line in summary(result):
                say(line)
            results.keep(out, facts, plan, result)
            found.append(result)
    results.keep_flatness(out, found)
    return found


def _tabulate(folder: Path) -> int:
    try:
        count = results.write_table(folder)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    say(f"{count} comparisons in {results.DOCUMENT}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orders bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="row", help="rows, see --list")
    parser.add_argument("--list", action="store_true", help="the rows there are")
    parser.add_argument("--table", action="store_true", help="write what is in --out into docs/performance.md")
    parser.add_argument("--rounds", type=int, default=5, help="each is A B B A")
    parser.add_argument("--seconds", type=float, default=5, help="of each turn")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="flatness: how many orders there are")
    parser.add_argument("--quick", action="store_true", help="only whether it works: the figures mean nothing")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("ORDERS_HOME", ROOT / ".local")) / "bench",
        help="folder for JSON and plots; default: bench in ORDERS_HOME",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
