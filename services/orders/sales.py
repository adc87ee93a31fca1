"""What one event adds to the rollups of sales: pure, and additive, so that many events are one sum in any order.

An amount belongs to the day (UTC) of the event that tells it: what is refunded today lessens no day before. An order is
counted by its status on the day it was placed. Amounts are minor units of the order's currency.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import Any, Final

from services.common import ids
from services.contracts.orders import EventType

SALES: Final = (
    *("orders", "units", "gross_amount", "discount_amount", "charge_amount"),
    *("cancelled_orders", "cancelled_amount", "refunded_amount"),
)
PRODUCT_SALES: Final = ("quantity", "amount")
STATUS_COUNTS: Final = ("orders", "amount")

Sums = dict[tuple[Any, ...], list[int]]


@dataclass(slots=True)
class Deltas:
    """What is to be added: the columns of SALES by (day, currency), of PRODUCT_SALES by (day, currency, product),
    and of STATUS_COUNTS by (day placed, currency, status)."""

    sales: Sums = field(default_factory=dict)
    products: Sums = field(default_factory=dict)
    statuses: Sums = field(default_factory=dict)


def add(
    deltas: Deltas, type_: str, data: Mapping[str, Any], *, on: date, placed_on: date, status_before: str | None
) -> None:
    """`deltas` and what the event of that type and `data`, on the day `on`, adds. KeyError, TypeError, ValueError.

    `status_before` is the order's before the event, None before the first. A type that is not known moves the order to
    another status at most, which its header says.
    """
    change, after = data["change"], data["after"]
    currency, status, total = after["currency"], after["status"], after["total_amount"]
    if status != status_before:
        _sum(deltas.statuses, (placed_on, currency, status), (1, total))
        if status_before is not None:
            _sum(deltas.statuses, (placed_on, currency, status_before), (-1, -total))
    match type_:
        case EventType.PLACED:
            lines, adjustments = change["items"], change["adjustments"]
            discounts = sum(one["amount"] for one in adjustments if one["kind"] == "discount")
            charges = sum(one["amount"] for one in adjustments) - discounts
            units, gross = sum(line["quantity"] for line in lines), sum(line["line_total"] for line in lines)
            _sum(deltas.sales, (on, currency), (1, units, gross, discounts, charges, 0, 0, 0))
            for line in lines:
                _sum(
                    deltas.products,
                    (on, currency, _product_id(line["product_id"])),
                    (line["quantity"], line["line_total"]),
                )
        case EventType.CANCELLED:
            _sum(deltas.sales, (on, currency), (0, 0, 0, 0, 0, 1, total, 0))
        case EventType.REFUNDED:
            _sum(deltas.sales, (on, currency), (0, 0, 0, 0, 0, 0, 0, change["amount"]))
        case _:
            pass


_product_id = lru_cache(maxsize=65_536)(ids.from_text)  # few products stand on most lines


def _sum(sums: Sums, key: tuple[Any, ...], amounts: Sequence[int]) -> None:
    found = sums.setdefault(key, [0] * len(amounts))
    for place, amount in enumerate(amounts):
        found[place] += amount
