"""Whether a run is to be believed: orders acknowledged = rows = events on Kafka = what the generator has counted."""

import asyncio
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import httpx
import orjson

from loadtests.load.shop import Shop, Visit
from services.common import ids
from services.common.stream import reading
from services.contracts.envelope import ORDERS_TOPIC

EVENTS_WITHIN_SECONDS = 60.0


@dataclass(frozen=True)
class Account:
    """Orders of the run's buyers, by where they are found.

    Of the sale, if there is one: the units there were, those in reserve, and those on the lines of all orders.
    """

    counted: int
    acknowledged: Sequence[str]
    rows: Collection[str]
    events: Collection[str]
    units: int = 0
    sold: int | None = None
    ordered: int = 0

    def mismatches(self) -> list[str]:
        """Why the run is void; nothing when all agree."""
        acknowledged, rows, events = set(self.acknowledged), set(self.rows), set(self.events)
        found = []
        if self.counted != len(self.acknowledged):
            found.append(f"the generator counted {self.counted} orders and recorded {len(self.acknowledged)}")
        if len(acknowledged) != len(self.acknowledged):
            found.append(f"{len(self.acknowledged) - len(acknowledged)} orders were acknowledged as another's")
        found += [
            f"{len(missing)} orders {what}, such as {min(missing)}"
            for what, missing in (
                ("were acknowledged and have no row", acknowledged - rows),
                ("have a row and were not acknowledged", rows - acknowledged),
                ("have a row and no event on Kafka", rows - events),
                ("have an event on Kafka and no row", events - rows),
            )
            if missing
        ]
        if self.sold is not None and not self.sold == self.ordered == self.units:
            found.append(
                f"{self.units} units were on sale, {self.sold} are sold, {self.ordered} are on lines of orders"
            )
        return found


async def account(shop: Shop, visit: Visit, counted: int, acknowledged: Sequence[str]) -> Account:
    """What there is once every row of the run's buyers is on Kafka, or EVENTS_WITHIN_SECONDS have passed."""
    async with shop.inspected() as connection:
        found = await connection.fetch(
            "SELECT order_id FROM orders.orders WHERE user_id = ANY($1)", [UUID(one) for one in visit.buyers]
        )
    rows = {ids.to_text(row["order_id"]) for row in found}
    events = await _placed_on_kafka(shop, set(visit.buyers), rows)
    if visit.sale is None:
        return Account(counted, acknowledged, rows, events)
    sold, ordered = await _sold(shop, visit.sale), await _ordered(shop, visit.sale)
    return Account(counted, acknowledged, rows, events, visit.units, sold, ordered)


async def _placed_on_kafka(shop: Shop, buyers: Collection[str], rows: Collection[str]) -> Collection[str]:
    """Orders of `buyers` that were placed, until all of `rows` have come. At least once: repeated ones count once."""
    events: Counter[str] = Counter()
    missing = set(rows)
    async with reading(str(shop.endpoints["kafka"]), ORDERS_TOPIC, from_beginning=True) as messages:
        with suppress(TimeoutError):  # what has not come by then is missing, and is told
            async with asyncio.timeout(EVENTS_WITHIN_SECONDS):
                while missing:
                    event = orjson.loads((await anext(messages)).value)
                    if event["type"] == "order.placed" and event["data"]["after"]["user_id"] in buyers:
                        events[event["order_id"]] += 1
                        missing.discard(event["order_id"])
    return events.keys()


async def _sold(shop: Shop, product: str) -> int:
    """Units of the sale that are reserved, which all of them are until somebody ships."""
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {shop.bearer('orders:read', 0)}"}) as client:
        answer = (await client.get(f"{shop.orders}/v1/inventory/{product}")).raise_for_status().json()
    return int(answer["reserved"])


async def _ordered(shop: Shop, product: str) -> int:
    async with shop.inspected() as connection:
        units: int = await connection.fetchval(
            "SELECT coalesce(sum(quantity), 0) FROM orders.order_items WHERE product_id = $1", ids.from_text(product)
        )
        return units
