"""After a run: what the API, Kafka, the stock and the copies have, held against the data.

Every accepted order is read back and compared line by line, and so is the fold of its events from Kafka. Nobody else
may trade in these products meanwhile, and nothing may be left under way: waits, with a bound, until it is at rest.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any, Final
from uuid import UUID

import asyncpg
import httpx
import orjson
import stamina

from loadtests.trade.reenact import Outcome
from loadtests.trade.supply import Stock, codes
from loadtests.trade.target import ATTEMPTS, WITHIN_SECONDS, Target, ask, each, http, settled
from loadtests.trade.trade import Order, Trade, demand
from services.common import ids
from services.common.stream import StreamError, reading
from services.contracts.envelope import ORDERS_TOPIC
from services.contracts.orders import Event, apply
from services.contracts.orders import Order as Folded

PUBLISHED_WITHIN_SECONDS: Final = 120.0  # for all events of a run to be on Kafka, and read; 130 MB of them for UCI
AT_REST_WITHIN_SECONDS: Final = 60.0  # for copies to follow: from the catalogue, and a cache's 15 s of stock

_COPY: Final = """
SELECT product_id, catalog.name, catalog.price, catalog.currency, catalog.active,
       (catalog.name, catalog.price, catalog.currency, catalog.active, catalog.version)
       IS NOT DISTINCT FROM (copy.name, copy.price, copy.currency, copy.active, copy.version) AS same
FROM catalog.products catalog FULL JOIN orders.products copy USING (product_id)
WHERE product_id = ANY($1)
"""


@dataclass
class Audit:
    """How much was compared, and each difference that was found."""

    orders: int = 0
    lines: int = 0
    events: int = 0
    repeated_events: int = 0
    products_in_stock: int = 0
    products_copied: int = 0
    differences: list[str] = field(default_factory=list)


async def audit(
    target: Target,
    trade: Trade,
    outcomes: Sequence[Outcome],
    stocked: Mapping[str, Stock],
    concurrency: int,
    *,
    patience_seconds: float = AT_REST_WITHIN_SECONDS,
) -> Audit:
    """All of it has been compared. `stocked` is the stock right before the orders, as `stock_up` gave it.

    What follows later (copies, caches) is given `patience_seconds` to do so.
    """
    found = Audit()
    accepted = {outcome.order_id: outcome.order for outcome in outcomes if outcome.order_id is not None}
    if len(accepted) != sum(outcome.accepted for outcome in outcomes):
        found.differences.append("two invoices were answered with the same order")
    await compare_copies(target, trade, found, patience_seconds=patience_seconds)
    answers: dict[str, dict[str, Any]] = {}
    async with http(target.orders, target.bearer(trade.name, "orders:read orders:read:any"), concurrency) as client:
        await _compare_orders(client, trade, accepted, found, answers, concurrency)
        await _compare_stock(client, trade, list(accepted.values()), stocked, found, concurrency, patience_seconds)
    await compare_events(target.kafka, answers, found)
    return found


async def _compare_orders(
    client: httpx.AsyncClient,
    trade: Trade,
    accepted: Mapping[str, Order],
    found: Audit,
    answers: dict[str, dict[str, Any]],
    concurrency: int,
) -> None:
    names = {product.product_id: product.name for product in trade.products}

    async def compare(order_id: str) -> None:
        response = await ask(client, "GET", f"/v1/orders/{order_id}")
        order = accepted[order_id]
        if response.is_error:
            found.differences.append(f"order {order.reference}, {order_id}: {response.status_code}")
            return
        answer = answers[order_id] = response.json()
        wanted = expected(order, trade.currency, names)
        for member, value in wanted.items():
            if answer[member] != value:
                found.differences.append(f"order {order.reference}, {order_id}: {member} differs from the data")
        found.orders += 1
        found.lines += len(order.lines)

    await each(list(accepted), concurrency, compare)


def expected(order: Order, currency: str, names: Mapping[str, str]) -> dict[str, Any]:
    """What the API must say of an acceptable `order` that has just been placed; `names` by product."""
    return {
        "user_id": order.user_id,
        "status": "confirmed",
        "payment_status": "on_account",
        "currency": currency,
        "total_amount": int(order.total),
        "item_count": len(order.lines),
        "version": 1,
        "items": [
            {
                "line_no": line_no,
                "product_id": line.product_id,
                "name": names[line.product_id],
                "quantity": line.quantity,
                "unit_price": int(line.unit_price),
                "line_total": int(line.total),
                "shipped_quantity": 0,
                "returned_quantity": 0,
            }
            for line_no, line in enumerate(order.lines, 1)
        ],
        "adjustments": [asdict(adjustment) for adjustment in order.adjustments],
    }


async def _compare_stock(
    client: httpx.AsyncClient,
    trade: Trade,
    orders: Sequence[Order],
    stocked: Mapping[str, Stock],
    found: Audit,
    concurrency: int,
    patience_seconds: float,
) -> None:
    """Reserved has grown by what was ordered, and nothing has left."""
    ordered, code = demand(orders), codes(trade)
    wanted = {
        product_id: Stock(before.on_hand, before.reserved + ordered[product_id])
        for product_id, before in stocked.items()
    }
    seen: dict[str, Stock] = {}

    async def look(product_id: str) -> None:
        response = await ask(client, "GET", f"/v1/inventory/{product_id}")
        answer = response.raise_for_status().json()
        seen[product_id] = Stock(answer["on_hand"], answer["reserved"])

    async def differing() -> list[str]:
        await each([one for one in sorted(wanted) if seen.get(one) != wanted[one]], concurrency, look)
        return [one for one in sorted(wanted) if seen[one] != wanted[one]]

    for product_id in await settled(differing, lambda differing: not differing, seconds=patience_seconds):
        found.differences.append(f"stock of {code[product_id]}: {seen[product_id]}, not {wanted[product_id]}")
    found.products_in_stock = len(wanted)


async def compare_copies(
    target: Target, trade: Trade, found: Audit, *, patience_seconds: float = AT_REST_WITHIN_SECONDS
) -> None:
    """The catalogue has the products as the data have them, and orders' copy is the same, version included.

    Not told over HTTP: nothing is compared where `postgres` is not to be looked into.
    """
    if target.postgres is None:
        return
    wanted = {
        ids.from_text(product.product_id): (product.name, int(product.price), trade.currency, True)
        for product in trade.products
        if product.acceptable
    }
    connection = await asyncpg.connect(target.postgres)
    try:

        async def rows() -> dict[UUID, asyncpg.Record]:
            return {row["product_id"]: row for row in await connection.fetch(_COPY, list(wanted))}

        seen = await settled(
            rows,
            lambda seen: len(seen) == len(wanted) and all(row["same"] for row in seen.values()),
            seconds=patience_seconds,
        )
    finally:
        await connection.close()
    code = codes(trade)
    for product_id, product in wanted.items():
        row, name = seen.get(product_id), code[ids.to_text(product_id)]
        if row is None or (row["name"], row["price"], row["currency"].strip(), row["active"]) != product:
            found.differences.append(f"product {name}: the catalogue has {row and tuple(row)}, the data {product}")
        elif not row["same"]:
            found.differences.append(f"product {name}: orders' copy differs from the catalogue's")
        else:
            found.products_copied += 1


async def compare_events(
    kafka_url: str,
    answers: Mapping[str, dict[str, Any]],
    found: Audit,
    *,
    within_seconds: float = PUBLISHED_WITHIN_SECONDS,
) -> None:
    """The fold of each order's events is the order that the API shows (`answers` by id), in order and without a gap."""
    folded: dict[str, Folded] = {}
    missing = set(answers)
    # A broker that is coming back is no disagreement. Nothing has been read when a reader cannot start.
    async for attempt in stamina.retry_context(on=StreamError, attempts=ATTEMPTS, timeout=WITHIN_SECONDS):
        with attempt, suppress(TimeoutError):
            async with (
                asyncio.timeout(within_seconds),
                reading(kafka_url, ORDERS_TOPIC, from_beginning=True) as messages,
            ):
                while missing:
                    event = Event(**orjson.loads((await anext(messages)).value))
                    answer = answers.get(event.order_id)
                    if answer and _folded_in(event, folded, found) and event.version >= answer["version"]:
                        missing.discard(event.order_id)
    found.differences += [f"order {order_id}: not all of its events are on Kafka" for order_id in sorted(missing)]
    for order_id, order in folded.items():
        answer = answers[order_id]
        # Through JSON and back, so that tuples are lists, as in the answer.
        content = {name: value for name, value in orjson.loads(orjson.dumps(order)).items() if name in answer}
        if differing := [name for name, value in content.items() if answer[name] != value]:
            found.differences.append(f"order {order_id}: events and API differ in {', '.join(differing)}")


def _folded_in(event: Event, folded: dict[str, Folded], found: Audit) -> bool:
    """Whether `event` is new and the next of its order; then `folded` has it. Delivery is at least once."""
    before = folded.get(event.order_id)
    if before and event.version <= before.version:
        found.repeated_events += 1
        return False
    try:
        folded[event.order_id] = apply(before, event)
    except ValueError as error:
        found.differences.append(f"events on Kafka: {error}")
        return False
    found.events += 1
    return True
