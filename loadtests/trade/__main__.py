"""Real orders through the API: `python -m loadtests.trade northwind|uci`, against the stack that runs in ORDERS_HOME.

Puts the products of the data set into the catalogue, as much stock as its orders want, and places the orders with their
own prices in the order of their times. Then reads everything back and compares: see docs/trade.md.
Exit code 0: all agrees. 1: something does not; it says what. 2: it could not be run.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson
from rich.console import Console

from loadtests.trade import northwind, uci
from loadtests.trade.report import Report
from loadtests.trade.run import CONCURRENCY, data_folder, run
from loadtests.trade.target import Target
from loadtests.trade.trade import Trade, TradeError
from services.common import log
from services.embedded.settings import StackSettings

AGREES: Final = 0
DISAGREES: Final = 1
FAILED: Final = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; its exit code."""
    given = _parser().parse_args(arguments)
    log.configure("trade", "WARNING")
    console = Console()
    try:
        report = _reported(given)
        if given.json:
            given.json.write_bytes(orjson.dumps(report.content(), option=orjson.OPT_INDENT_2))
    except KeyboardInterrupt:
        return FAILED
    except TradeError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return FAILED
    except Exception:  # noqa: BLE001 # whatever it is, 1 would mean something else
        console.print_exception()
        return FAILED
    report.show(console)
    return DISAGREES if report.disagreements else AGREES


def _reported(given: argparse.Namespace) -> Report:
    target = Target.of(StackSettings())
    return asyncio.run(
        run(
            target,
            _trade(given),
            name=given.run,
            speed_up=given.speed_up,
            concurrency=given.concurrency,
            audited=not given.no_audit,
        )
    )


def _trade(given: argparse.Namespace) -> Trade:
    data: Path = given.data or data_folder()
    if given.data_set == northwind.NAME:
        return northwind.read(data)
    return uci.read(data, days=given.days or (() if given.invoice else uci.UNPACKED), invoices=given.invoice)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.trade", description=__doc__)
    parser.add_argument("data_set", choices=[northwind.NAME, uci.NAME])
    parser.add_argument("--data", type=Path, help="folder of the data sets; default TRADE_DATA, else ../shared/data")
    parser.add_argument("--days", nargs="+", default=[], help="uci: YYYY-MM-DD …, or all; default the unpacked ones")
    parser.add_argument("--invoice", nargs="+", default=[], help="uci: these invoices, besides --days or alone")
    parser.add_argument("--speed-up", type=_positive, help="seconds of the data in one; default as fast as possible")
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY, help="requests at once")
    parser.add_argument("--run", help="name of the run; one that broke off goes on under its name")
    parser.add_argument("--no-audit", action="store_true", help="do not read everything back")
    parser.add_argument("--json", type=Path, help="write the report there")
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError("it has to be more than 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
