"""What a made-up shop is like: what it sells, who orders what of it, when, and what becomes of that. By chance, no I/O.

Baskets, quantities, prices, popularity and hours are those of UCI's Online Retail set (a British web shop, 2010-12 to
2011-12; D. Chen, UCI Machine Learning Repository, no. 352), read off the quantiles of its 19,959 invoices with a price.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property, lru_cache
from random import Random
from typing import Final, NamedTuple
from uuid import UUID, uuid5

from services.common import clock, ids

CURRENCIES: Final = ("USD", "EUR", "JPY")

_DAY_MS: Final = 86_400_000
_KEEPS_MS: Final = 30 * _DAY_MS  # as long as idempotency keys are kept
_TABLE: Final = 1_000  # of a distribution that is drawn from all the time
_NAMESPACE: Final = UUID("6f726465-7273-5365-8564-000000000000")  # of the buyers' ids
_PRODUCTS_MADE_AT: Final = datetime(2020, 1, 1, tzinfo=clock.EPOCH.tzinfo)  # fixed, so that a seed names its products

_KINDS: Final = ("Teapot", "Kettle", "Lamp", "Chair", "Mug", "Notebook", "Blanket", "Basket", "Vase", "Clock")
_LOOKS: Final = ("Blue", "Oak", "Linen", "Brass", "Small", "Round", "Plain", "Glazed", "Folding", "Striped")


class Quantiles:
    """A distribution by some of its quantiles, linear between them."""

    def __init__(self, *knots: tuple[float, float]) -> None:
        """`knots`: (share, value), from share 0 to 1."""
        self._shares = [share for share, _ in knots]
        self._values = [value for _, value in knots]

    def at(self, share: float) -> float:
        """The value that a `share` (0..1) of all is below."""
        return _between(self._shares, self._values, share)

    def below(self, value: float) -> float:
        """The share (0..1) that is below `value`."""
        return _between(self._values, self._shares, value)

    def table(self, least: int) -> list[int]:
        """_TABLE values, each as likely as any other: whole, and not under `least`."""
        return [max(least, round(self.at((number + 0.5) / _TABLE))) for number in range(_TABLE)]


def _between(places: list[float], values: list[float], place: float) -> float:
    number = min(max(bisect_right(places, place), 1), len(places) - 1)
    before, after = places[number - 1], places[number]
    part = (place - before) / (after - before)
    return values[number - 1] + part * (values[number] - values[number - 1])


# That shop sells to shops: 27 lines an invoice, which would be 270 million lines for ten million orders, some 200 GB. A
# basket has a twentieth of its lines.
_BASKETS: Final = 20
_LINES: Final = Quantiles(
    *((0, 1 / _BASKETS), (0.1, 2 / _BASKETS), (0.2, 5 / _BASKETS), (0.3, 8 / _BASKETS), (0.4, 11 / _BASKETS)),
    *((0.5, 15 / _BASKETS), (0.6, 19 / _BASKETS), (0.7, 25 / _BASKETS), (0.8, 34 / _BASKETS), (0.9, 54 / _BASKETS)),
    *((0.95, 79 / _BASKETS), (0.98, 152 / _BASKETS), (0.99, 220 / _BASKETS), (0.999, 593 / _BASKETS)),
    (1, 1_114 / _BASKETS),
).table(least=1)
_QUANTITIES: Final = Quantiles(
    *((0, 1), (0.28, 1), (0.43, 2), (0.5, 3), (0.6, 6), (0.7, 8), (0.75, 12), (0.85, 12), (0.9, 24), (0.95, 30)),
    *((0.98, 72), (0.99, 100), (0.995, 160), (1, 450)),
).table(least=1)
_PRICES: Final = Quantiles(  # pence
    *((0, 29), (0.05, 39), (0.1, 42), (0.2, 85), (0.3, 125), (0.4, 165), (0.5, 210), (0.6, 289), (0.7, 375)),
    *((0.8, 495), (0.9, 815), (0.95, 995), (0.98, 1_613), (0.99, 2_495), (0.995, 3_995), (1, 16_500)),
)
_POPULARITY: Final = Quantiles(  # (share of the lines, the products on them, most wanted first: share of all products)
    *((0, 0), (0.05, 0.0043), (0.1, 0.0107), (0.2, 0.0278), (0.3, 0.0515), (0.4, 0.0826), (0.5, 0.1222)),
    *((0.6, 0.1729), (0.7, 0.2385), (0.8, 0.328), (0.9, 0.4626), (0.95, 0.5743), (0.98, 0.6932), (1, 1)),
)
_HOURS: Final = Quantiles(  # at night, when that shop has none, a few
    *((0, 0), (0.01, 7), (0.012, 8), (0.04, 9), (0.113, 10), (0.23, 11), (0.348, 12), (0.508, 13), (0.644, 14)),
    *((0.766, 15), (0.881, 16), (0.947, 17), (0.98, 18), (0.989, 19), (0.996, 20), (1, 24)),
)
# Of a currency: of how many of the orders, and how many minor units are a penny's worth.
_MONEY: Final = {"USD": (16, 1.3), "EUR": (3, 1.15), "GBP": (3, 1.0), "JPY": (1, 1.9)}

_ORDERS_PER_BUYER: Final = 5  # on average
_BUYERS_MIN: Final = 200
# Zipf's exponent of buyers by their orders. Of two million who order ten million times the first orders 86,000 times.
_BUYERS_ZIPF: Final = 0.8


class Fate(StrEnum):
    """What becomes of an order, as time goes on."""

    DELIVERED = "delivered"
    SPLIT = "delivered in two parts"
    CANCELLED = "cancelled"
    RETURNED = "returned"
    PARTLY_RETURNED = "partly returned"
    DECLINED = "its payment declined"
    EXPIRED = "never paid"


_PAID_SHARE: Final = 0.15  # of the orders have a payment; the others are on account
_METHODS: Final = ("pm_card_visa", "pm_card_mastercard", "pm_paypal", "pm_bank")
_FATES: Final = tuple(  # in percent
    fate
    for fate, percent in (
        *((Fate.DELIVERED, 81), (Fate.SPLIT, 4), (Fate.CANCELLED, 6), (Fate.RETURNED, 3), (Fate.PARTLY_RETURNED, 2)),
        *((Fate.DECLINED, 3), (Fate.EXPIRED, 1)),
    )
    for _ in range(percent)
)
_NEED_PAYMENT: Final = frozenset({Fate.DECLINED, Fate.EXPIRED})


class Buyer(NamedTuple):
    """Who orders."""

    text: str
    shard: int


class Product(NamedTuple):
    """What is sold. `price` is in minor units of `currency`; `text` is the ULID of `product_id`."""

    product_id: UUID
    text: str
    event_id: UUID
    name: str
    price: int
    currency: str


class Plan(NamedTuple):
    """An order to be: who buys how many of what at which millisecond, and what is to become of it."""

    at_ms: int
    buyer: Buyer
    currency: str
    method: str | None
    lines: list[tuple[Product, int]]
    fate: Fate


@dataclass(frozen=True)
class Model:
    """A shop with so many products that had so many orders in the `months` up to `upto`. The same for the same members.

    `upto` is in whole milliseconds; its month is the last one.
    """

    seed: int
    products: int
    orders: int
    months: int
    upto: datetime
    currencies: tuple[str, ...]

    @cached_property
    def first(self) -> datetime:
        """The first instant of the first month."""
        return clock.add_months(clock.month_of(self.upto), 1 - self.months)

    @property
    def all_months(self) -> list[datetime]:
        """The first instants of its months, oldest first."""
        return [clock.add_months(self.first, number) for number in range(self.months)]

    @property
    def keys_since_ms(self) -> int:
        """Orders made since then have their idempotency keys still."""
        return clock.to_ms(self.upto) - _KEEPS_MS

    @cached_property
    def offered(self) -> list[Product]:
        """The products; of fewer of them these are the first ones."""
        chance = Random(f"products {self.seed}")  # noqa: S311 # a made-up shop
        made_at_ms = clock.to_ms(_PRODUCTS_MADE_AT)
        weights = [_MONEY[currency][0] for currency in self.currencies]
        found = []
        for number in range(1, self.products + 1):
            product_id = UUID(int=ids.uuid7_bits(made_at_ms, chance.getrandbits(12), chance.getrandbits(62)))
            name = f"{chance.choice(_LOOKS)} {chance.choice(_KINDS)} {number:04d}"
            currency = chance.choices(self.currencies, weights)[0] if number > len(weights) else self._nth(number)
            price = max(1, round(_PRICES.at(chance.random()) * _MONEY[currency][1]))
            event_id = uuid5(product_id, "product.created")
            found.append(Product(product_id, ids.to_text(product_id), event_id, name, price, currency))
        return found

    def buyer(self, number: int) -> Buyer:
        """Number 0 orders most."""
        return _buyer(self.seed, number)

    def numbers_of(self, month: datetime) -> range:
        """Of the orders in the order of time, those of that month."""
        return range(self._number_at(month), self._number_at(clock.add_months(month, 1)))

    def plans_of(self, month: datetime) -> Iterator[Plan]:
        """The orders of that month in the order of time. They follow from the model and the month alone."""
        chance = Random(f"orders {self.seed} {month:%Y-%m}")  # noqa: S311 # a made-up shop
        draw, numbers = chance.random, self.numbers_of(month)
        least, most = self._days_until(month), self._days
        first_ms, upto_ms = clock.to_ms(self.first), clock.to_ms(self.upto)
        power = 1 / (1 - _BUYERS_ZIPF)
        spread = max(_BUYERS_MIN, self.orders // _ORDERS_PER_BUYER) ** (1 - _BUYERS_ZIPF) - 1
        shelves = self._shelves
        weights = [currency for currency in shelves for _ in range(_MONEY[currency][0])]
        for number in numbers:
            days = max(least, (number + draw()) / self.orders * most)
            at_ms = first_ms + int(days) * _DAY_MS + int(_HOURS.at(days % 1) * 3_600_000)
            currency = weights[int(len(weights) * draw())]
            shelf = shelves[currency]
            lines = [
                (shelf[int(len(shelf) * _POPULARITY.at(draw()))], _QUANTITIES[int(_TABLE * draw())])
                for _ in range(_LINES[int(_TABLE * draw())])
            ]
            method = _METHODS[int(len(_METHODS) * draw())] if draw() < _PAID_SHARE else None
            fate = _FATES[int(100 * draw())]
            if method is None and fate in _NEED_PAYMENT:
                fate = Fate.DELIVERED
            buyer = _buyer(self.seed, int((1 + spread * draw()) ** power) - 1)
            yield Plan(min(at_ms, upto_ms), buyer, currency, method, lines, fate)

    @cached_property
    def _days(self) -> float:
        """From the first instant to the last one, a day being as long as its orders are many."""
        return self._days_until(self.upto)

    def _days_until(self, at: datetime) -> float:
        days, ms = divmod(clock.to_ms(at) - clock.to_ms(self.first), _DAY_MS)
        return days + _HOURS.below(ms / 3_600_000)

    def _number_at(self, at: datetime) -> int:
        return int(self.orders * min(1.0, self._days_until(at) / self._days)) if at < self.upto else self.orders

    def _nth(self, number: int) -> str:
        """Every currency has a product, if there are enough."""
        return self.currencies[number - 1]

    @cached_property
    def _shelves(self) -> dict[str, list[Product]]:
        shelves: dict[str, list[Product]] = {}
        for product in self.offered:
            shelves.setdefault(product.currency, []).append(product)
        return shelves


@lru_cache(maxsize=65_536)
def _buyer(seed: int, number: int) -> Buyer:
    user_id = uuid5(_NAMESPACE, f"{seed}/{number}")
    return Buyer(str(user_id), ids.shard_of(user_id))
