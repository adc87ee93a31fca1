"""A data set as trade: what is sold and who ordered what. Pure; amounts are exact and in minor units of the currency.

What the data say is kept as it is, also where the API must refuse it: nothing here mends a price or a quantity.
"""

import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Final, Literal

from services.common import ids

# What a client is promised of POST /v1/orders and PUT /v1/products (docs/openapi.json). Written down a second time: a
# limit that moves in the backend must show here.
LINES_MAX: Final = 2_000
QUANTITY_MAX: Final = 1_000_000
PRICE_MAX: Final = 10**12
TOTAL_MAX: Final = 2**53 - 1
NAME_MAX: Final = 200

_NAMESPACE: Final = uuid.uuid5(uuid.NAMESPACE_URL, "urn:order-backend:trade")

Kind = Literal["tax", "shipping", "discount", "fee"]


class TradeError(Exception):
    """The run cannot be made or finished; the text says what to do about it."""


@dataclass(frozen=True, slots=True)
class Product:
    """What is sold. `price` is that of the catalogue; lines have their own."""

    code: str
    product_id: str
    name: str
    price: Decimal

    @property
    def acceptable(self) -> bool:
        """Whether the catalogue takes it: it has a price in whole minor units, from 1."""
        return _whole(self.price, PRICE_MAX)


@dataclass(frozen=True, slots=True)
class Line:
    """So many of a product at a price each."""

    product_id: str
    quantity: int
    unit_price: Decimal

    @property
    def total(self) -> Decimal:
        """Quantity times price."""
        return self.quantity * self.unit_price

    @property
    def acceptable(self) -> bool:
        """Whether an order may have such a line."""
        return 1 <= self.quantity <= QUANTITY_MAX and _whole(self.unit_price, PRICE_MAX)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """What is added to an order, or taken off it (a discount, negative), for a line or for all of it."""

    kind: Kind
    line_no: int | None
    label: str
    amount: int


@dataclass(frozen=True)
class Order:
    """An order to be: `reference` is its number in the data, `at` its own time, the lines are in their order there."""

    reference: str
    at: datetime
    user_id: str
    lines: tuple[Line, ...]
    adjustments: tuple[Adjustment, ...] = ()

    @cached_property
    def gross(self) -> Decimal:
        """The sum of its lines."""
        return sum((line.total for line in self.lines), Decimal(0))

    @cached_property
    def total(self) -> Decimal:
        """What the buyer owes: lines and adjustments."""
        return self.gross + sum(adjustment.amount for adjustment in self.adjustments)

    @cached_property
    def acceptable(self) -> bool:
        """Whether the API is to take it. Whatever else is to be refused with 422 `invalid`."""
        return (
            1 <= len(self.lines) <= LINES_MAX
            and all(line.acceptable for line in self.lines)
            and 0 <= self.total <= TOTAL_MAX
        )


@dataclass(frozen=True)
class Trade:
    """The products, and the orders in the order of their times."""

    name: str
    currency: str
    products: tuple[Product, ...]
    orders: tuple[Order, ...]


def demand(orders: Iterable[Order]) -> Counter[str]:
    """Units of each product on all lines of `orders`."""
    found: Counter[str] = Counter()
    for order in orders:
        for line in order.lines:
            found[line.product_id] += line.quantity
    return found


def product_id(data_set: str, code: str) -> str:
    """The ULID of a product: always the same, so that a second run meets its own. Codes differ by letter case too."""
    return ids.to_text(uuid.uuid5(_NAMESPACE, f"{data_set}/product/{code}"))


def user_id(data_set: str, customer: str) -> str:
    """The UUID of a customer of the data set, or of somebody who trades with it; always the same."""
    return str(uuid.uuid5(_NAMESPACE, f"{data_set}/customer/{customer}"))


def named(text: str) -> str:
    """`text` as a name: no control characters, no blanks around it or twice within, 200 characters at most."""
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:NAME_MAX].rstrip()


def _whole(amount: Decimal, most: int) -> bool:
    return 1 <= amount <= most and amount == amount.to_integral_value()
