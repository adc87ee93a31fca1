"""Turns at a product: a few orders of it are in the database at once, the others wait here, without a connection.

Orders of one product wait for each other at its stock's row, whatever is done. Inside PostgreSQL each of them would
hold a connection meanwhile, and a product that everybody wants would take all from those who buy something else.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge, Histogram

from services.common.metrics import BUCKETS_SECONDS

# One commits, the others wait for the row: so it is not idle while an answer goes through the event loop, which passes
# the turn on. Decision 0030 has the figures; each one more is one more connection.
AT_ONCE: Final = 6
WITHIN_SECONDS: Final = 5.0  # as long as two tries for a connection: so long orders of one product waited for it before

order_turns_waiting = Gauge("order_turns_waiting", "Orders that wait for a turn at a product, without a connection")
order_turn_wait_seconds = Histogram(
    "order_turn_wait_seconds", "Time waiting for a turn, of orders that had to wait", buckets=BUCKETS_SECONDS
)
order_turns_missed_total = Counter("order_turns_missed_total", "Orders that had no turn in time")


class NoTurnError(Exception):
    """So many want the product that there was no turn in time; nothing was asked of the database."""


class _Product:
    """A product while an order of it is here."""

    __slots__ = ("free", "orders", "wanted")

    def __init__(self, at_once: int) -> None:
        self.free = asyncio.Semaphore(at_once)  # wakes in the order of asking; who is cancelled gives its turn back
        self.wanted = 0  # turns that are taken or waited for
        self.orders = 0  # orders with this product, whichever of their products they have their turn at


class Turns:
    """Of one process, as its connections are. It knows a product only while an order of it is here."""

    def __init__(self, at_once: int = AT_ONCE, within_seconds: float = WITHIN_SECONDS) -> None:
        self._at_once = at_once
        self._within_seconds = within_seconds
        self._products: dict[UUID, _Product] = {}

    @property
    def products(self) -> int:
        """How many products it knows: those of orders that are here."""
        return len(self._products)

    @asynccontextmanager
    async def turn(self, product_ids: Iterable[UUID]) -> AsyncIterator[None]:
        """Inside, it is the turn of an order of these products (at least one); first come, first served.

        An order has one turn, at the product that is wanted most. So nobody holds one while waiting for another: no two
        wait for each other, and what is bought together with a popular product stays free for others. `n` products
        that are wanted so much have at most `n` times `at_once` orders in the database. When a turn is free no other
        task runs before it is taken. NoTurnError when there is none in time.
        """
        ids = dict.fromkeys(product_ids)
        products = [self._products.get(one) or self._products.setdefault(one, _Product(self._at_once)) for one in ids]
        product = max(products, key=_popularity)
        product.wanted += 1
        for one in products:
            one.orders += 1
        try:
            if product.free.locked():
                await self._wait(product)
            else:
                await product.free.acquire()
            try:
                yield
            finally:
                product.free.release()
        finally:
            product.wanted -= 1
            for product_id, one in zip(ids, products, strict=True):
                one.orders -= 1
                if not one.orders:
                    del self._products[product_id]

    async def _wait(self, product: _Product) -> None:
        started = time.perf_counter()
        order_turns_waiting.inc()
        try:
            async with asyncio.timeout(self._within_seconds):
                await product.free.acquire()
        except TimeoutError:
            order_turns_missed_total.inc()
            raise NoTurnError from None
        finally:
            order_turns_waiting.dec()
            order_turn_wait_seconds.observe(time.perf_counter() - started)


def _popularity(product: _Product) -> tuple[int, int]:
    """Where an order would wait longest; of those equal, what most have in their baskets."""
    return product.wanted, product.orders
