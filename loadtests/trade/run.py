"""One run: catalogue, stock, orders, audit, and all that does not agree."""

import os
import secrets
from pathlib import Path
from typing import Final

from loadtests.trade import reenact, supply
from loadtests.trade.audit import Audit, audit, compare_copies
from loadtests.trade.report import Report
from loadtests.trade.target import Target, UnansweredError
from loadtests.trade.trade import Trade, TradeError

CONCURRENCY: Final = 8  # keeps one orders-api busy

_CHECKOUT: Final = Path(__file__).resolve().parents[2]


def data_folder() -> Path:
    """Where the data sets are unless one says so: TRADE_DATA, else `shared/data` beside the checkout."""
    return Path(os.environ.get("TRADE_DATA") or _CHECKOUT.parent / "shared" / "data")


async def run(
    target: Target,
    trade: Trade,
    *,
    name: str | None = None,
    speed_up: float | None = None,
    concurrency: int = CONCURRENCY,
    audited: bool = True,
) -> Report:
    """`trade` has been re-enacted on `target` and compared. TradeError when it cannot be.

    A run of the same `name` goes on where that one ended: what it has placed is answered again, not placed twice.
    """
    name = name or secrets.token_hex(6)
    try:
        return await _run(target, trade, name, speed_up, concurrency, audited=audited)
    except UnansweredError as error:
        raise TradeError(f"{error}. What is placed is placed; go on with --run {name}.") from error


async def _run(
    target: Target, trade: Trade, name: str, speed_up: float | None, concurrency: int, *, audited: bool
) -> Report:
    refused = await supply.put_products(target, trade, concurrency)
    stocked = await supply.stock_up(target, trade, name, concurrency)
    found = Audit()
    await compare_copies(target, trade, found)  # orders take the name of a line from the copy: wait for it
    outcomes, seconds = await reenact.reenact(target, trade, name, speed_up=speed_up, concurrency=concurrency)
    if audited:
        found = await audit(target, trade, outcomes, stocked, concurrency)
    return Report(
        run=name,
        trade=trade,
        speed_up=speed_up,
        concurrency=concurrency,
        refused_products=refused,
        outcomes=outcomes,
        seconds=seconds,
        audit=found if audited else None,
        disagreements=[*supply.unexpected(trade, refused), *reenact.unexpected(outcomes), *found.differences],
    )
