"""What an order costs, measured on a stack of its own; and with --orders-per-year, what so many orders need.

Measures unless --orders-per-year or --table is given. The sums are made with what the project keeps in
loadtests/bench/capacity.json, or with --measured FILE. See docs/capacity.md. Exit code 2: the run is void.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import orjson

from loadtests.bench import capacity_run
from loadtests.bench.capacity_model import Parameters
from loadtests.bench.capacity_tables import document, limits, needs
from loadtests.bench.machine import NotDurableError
from loadtests.bench.measure import VoidError
from loadtests.bench.said import say
from loadtests.machine import ROOT
from services.cli.marked import replaced
from services.common import log
from services.embedded.errors import StackError
from services.embedded.supervisor import stop_on_signals

FAILED: Final = 2
KEPT: Final = Path(__file__).with_name("capacity.json")
DOCUMENT: Final = ROOT / "docs" / "capacity.md"
_COUNT: Final = "orders_per_year"


def main(arguments: Sequence[str]) -> int:
    """Run as the command line says; its exit code."""
    parser = _parser()
    given = parser.parse_args(arguments)
    found = given.out / "capacity" / "measured.json"
    if given.orders_per_year:
        measured = orjson.loads((given.measured or KEPT).read_bytes())
        try:
            _tell(measured, given)
        except ValueError as error:
            parser.error(str(error))
        return 0
    if given.table:
        return _keep(given.measured or found)
    log.configure("bench", "WARNING")
    try:
        asyncio.run(_measure(found, quick=given.quick))
    except (VoidError, NotDurableError, StackError) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    return 0


def write(measured: dict[str, Any], path: Path = DOCUMENT) -> None:
    """The document's generated parts are of what was measured."""
    text = path.read_text(encoding="utf-8")
    for mark, part in document(measured).items():
        text = replaced(text, mark, part)
    path.write_text(text, encoding="utf-8")


async def _measure(file: Path, *, quick: bool) -> None:
    with stop_on_signals():
        measured = await capacity_run.measured(capacity_run.QUICK if quick else capacity_run.FULL)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(orjson.dumps(measured, option=orjson.OPT_INDENT_2))
        say(f"kept in {file}; --table makes it the project's")
        return
    raise VoidError("ended by a signal; nothing is kept")


def _keep(file: Path) -> int:
    """What was measured is the project's, and in its document."""
    try:
        measured = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        sys.stderr.write(f"{file} holds nothing that was measured: {error}\n")
        return FAILED
    if measured["quick"]:
        sys.stderr.write(f"{file} is of a quick run, whose figures mean nothing\n")
        return FAILED
    KEPT.write_bytes(orjson.dumps(measured, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    write(measured)
    say(f"in {KEPT} and {DOCUMENT}")
    return 0


def _tell(measured: dict[str, Any], given: argparse.Namespace) -> None:
    others = {each.name: getattr(given, each.name) for each in fields(Parameters) if each.name != _COUNT}
    shops = [Parameters(orders_per_year=count, **others) for count in given.orders_per_year]
    for line in (*needs(measured, shops), "", *limits(measured, shops[0])):
        say(line)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orders bench capacity", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only whether it works: the figures mean nothing")
    parser.add_argument("--table", action="store_true", help="keep what was measured, and write docs/capacity.md")
    parser.add_argument("--measured", type=Path, help="reckon with this file instead of what the project keeps")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(os.environ.get("ORDERS_HOME", ROOT / ".local")) / "bench",
        help="folder for what is measured; default: bench in ORDERS_HOME",
    )
    for each in fields(Parameters):
        name, told = f"--{each.name.replace('_', '-')}", each.metadata["told"]
        if each.name == _COUNT:
            parser.add_argument(name, type=_positive, nargs="+", help=f"{told}: reckon instead of measuring")
        else:
            parser.add_argument(
                name, type=_not_negative, default=each.default, help=f"{told}; default {each.default:g}"
            )
    return parser


def _positive(text: str) -> float:
    value = _not_negative(text)
    if value == 0:
        raise argparse.ArgumentTypeError("has to be more than 0")
    return value


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
