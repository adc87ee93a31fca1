"""Load by k6 and by Locust: `python -m loadtests.load`, on the stack that runs in ORDERS_HOME, else on one of its own.

Exit code 0: every objective is met, the two agree, and the run is to be believed. 1: not so; it says what. 2: it could
not be run. docs/load.md says how to read it; results and raw samples are in <ORDERS_HOME>/load.
"""

import argparse
import asyncio
import shlex
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console

from loadtests import machine
from loadtests.load import database, evidence, report, scenario, table
from loadtests.load.generators import Generator, Load, k6, locust
from loadtests.load.run import Site, climb, knee_told, run, verdict
from loadtests.load.scenario import OBJECTIVES, REPORT, LoadError, Objectives
from loadtests.load.shop import opened
from services.common import clock, log
from services.embedded.errors import StackError
from services.embedded.settings import StackSettings
from services.embedded.supervisor import stop_on_signals

WELL: Final = 0
WRONG: Final = 1
FAILED: Final = 2
SECONDS: Final = 120.0
RATE_MAX: Final = 5_000.0  # bounded, as everything that puts load on a machine
SECONDS_MAX: Final = 24 * 3600.0
COUNT_MAX: Final = 1_000_000
LIBRARIES: Final = ("asyncpg", "sqlalchemy", "fastapi", "uvicorn")  # between a request and its statement


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; its exit code."""
    given = _parser().parse_args(arguments)
    console = Console()
    try:
        if given.table:
            table.write(given.table)
            return WELL
        log.configure("load", "WARNING")
        return asyncio.run(_until_stopped(given, console))
    except (LoadError, StackError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    except Exception:  # noqa: BLE001 # whatever it is, 1 would mean something else
        console.print_exception()
        return FAILED


async def _until_stopped(given: argparse.Namespace, console: Console) -> int:
    """FAILED when a signal has ended it; a stack of our own is stopped then too."""
    with stop_on_signals():
        return await _loaded(given, console)
    console.print("Ended by a signal: nothing is judged.")
    return FAILED


async def _loaded(given: argparse.Namespace, console: Console) -> int:
    settings, notes = StackSettings(), list[str]()
    generators = _generators("k6" if given.steps else given.only, notes)
    Objectives.read(given.objectives)
    described = scenario.read(given.scenario)
    load = Load(
        given.scenario,
        given.rate,
        given.seconds or described.seconds or SECONDS,
        given.warm_seconds,
        given.objectives,
        given.roll_over,
    )
    folder = settings.home / "load" / f"{clock.now():%Y%m%dT%H%M%S}-{load.scenario}"
    async with opened(settings, products=given.products, orders=given.orders) as shop:
        about: dict[str, Any] = {
            "machine": {**await machine.described(settings.home), "postgres": await shop.durable_settings()},
            "command": shlex.join(["python", "-m", "loadtests.load", *sys.argv[1:]]),
            "versions": [*(f"{name} {version(name)}" for name in LIBRARIES), *(one.version() for one in generators)],
        }
        uncounted = await database.watched(shop)
        notes += [uncounted] if uncounted else []
        site = Site(shop, given.products, folder, work=uncounted is None, say=console.print)
        runs = await (climb(site, k6(), load, given.steps) if given.steps else run(site, generators, load, given.runs))
        names = {each.statement for one in runs for each in one.evidence.statements}
        about |= {"plans": await evidence.plans(shop, names), "orders_estimated": await shop.orders_estimated()}
    if REPORT in described.operations and not any(REPORT in one.measured.samples.response_ms for one in runs):
        notes.append(f"This stack has no replica, so nobody asked for reports: {REPORT} was left out.")
    if given.steps:
        about["knee"] = knee_told(runs)
    # Beyond the first step objectives are meant to be missed, but no order to be lost.
    wrong = verdict([runs[0], *(one for one in runs[1:] if one.void)]) if given.steps else verdict(runs)
    content = {**about, **report.content(runs, load, notes, wrong)}
    (folder / "result.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    report.show(console, content, runs)
    console.print(f"{'Not so' if wrong else 'All is well'}: {folder / 'result.json'}", highlight=False, soft_wrap=True)
    return WRONG if wrong else WELL


def _generators(only: str | None, notes: list[str]) -> list[Generator]:
    """Those that are here, or the one asked for; `notes` gets who is missing. LoadError when nobody is left."""
    wanted = [one for one in (k6(), locust()) if only in {None, one.name}]
    missing = [one.missing for one in wanted if not one.installed]
    found = [one for one in wanted if one.installed]
    if not found:
        raise LoadError("; ".join(missing))
    notes += [f"{reason}. {found[0].name} ran alone, and nobody was compared." for reason in missing]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.load", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scenario", choices=scenario.names(), default="mixed")
    parser.add_argument("--rate", type=_bounded(RATE_MAX), default=100.0, help="requests a second (100)")
    parser.add_argument("--seconds", type=_bounded(SECONDS_MAX), help=f"measured; the scenario's own, else {SECONDS:g}")
    parser.add_argument("--warm-seconds", type=_bounded(SECONDS_MAX), default=10.0, help="before that (10)")
    parser.add_argument("--runs", type=int, default=1, choices=range(1, 21), metavar="1-20", help="of each (1)")
    parser.add_argument(
        "--steps", type=_rates, metavar="RATE,RATE", help="a run of k6 at each rate, up to one that does not hold"
    )
    parser.add_argument("--only", choices=["k6", "locust"], help="one of the two")
    parser.add_argument("--products", type=_count, default=1_000, help="to be asked for (1,000)")
    parser.add_argument("--orders", type=_count, default=20_000, help="loaded as a past, once in a database (20,000)")
    parser.add_argument("--roll-over", action="store_true", help="make a month's partitions in the middle of each run")
    parser.add_argument(
        "--table", type=_file, metavar="RESULT", help="only write docs/performance.md from a result.json"
    )
    parser.add_argument("--objectives", type=_file, default=OBJECTIVES, help="another file than objectives.json")
    return parser


def _bounded(most: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        found = float(text)
        if not 0 < found <= most:
            raise argparse.ArgumentTypeError(f"it has to be more than 0, and at most {most:g}")
        return found

    return number


def _rates(text: str) -> list[float]:
    found = [_bounded(RATE_MAX)(rate) for rate in text.split(",")]
    if found != sorted(set(found)):
        raise argparse.ArgumentTypeError("each rate has to be higher than the one before")
    return found


def _count(text: str) -> int:
    found = int(text)
    if not 0 < found <= COUNT_MAX:
        raise argparse.ArgumentTypeError(f"it has to be 1 to {COUNT_MAX:,}")
    return found


def _file(text: str) -> Path:
    found = Path(text).resolve()
    if not found.is_file():
        raise argparse.ArgumentTypeError(f"there is no {found}")
    return found


if __name__ == "__main__":
    sys.exit(main())
