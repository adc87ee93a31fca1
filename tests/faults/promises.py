"""What is promised of each part of a stack while it is dead, frozen or slow: DESIGN's table, one function a row.

Each asserts what holds meanwhile, with the fault as a block of its own, and gives what has to be seen soon after.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, TypeAlias

from tests.faults.measured import metric
from tests.faults.parts import JITTER_SECONDS, LATENCY_SECONDS, How
from tests.faults.waiting import eventually
from tests.faults.whole import IMPATIENT, Whole

READS: Final = 20
ORDERS: Final = 5  # so many failures in a row open the provider's breaker
REFUSED_WITHIN_SECONDS: Final = 4.0  # 1 s is promised, where nothing else runs; without breakers it is 6
LATE: Final = "pm_late_30000"  # ms until it is paid: what does not wait for so long expires
OUTBOX: Final = '{outbox="orders"}'


class Sign(NamedTuple):
    """What is seen once a part is back."""

    said: str
    seen: Callable[[], Awaitable[bool]]


Fault: TypeAlias = AbstractAsyncContextManager[None]
Promise: TypeAlias = Callable[[Whole, How, Fault], Awaitable[Sign]]


async def reads_go_to_the_database(at: Whole, _: How, fault: Fault) -> Sign:
    """Every read is answered, and none waits for the cache once that is known to be away."""
    paths = [f"/v1/orders/{await at.placed()}", f"/v1/inventory/{at.product}"]

    async def all_are(outcome: str) -> bool:
        return {(await at.get(path)).headers["X-Cache"] for path in paths} == {outcome}

    async with fault:
        await eventually(lambda: all_are("bypass"), "reads pass the cache by", seconds=10)
        took = []
        for path in paths * (READS // len(paths)):
            asked_at = time.monotonic()
            answer = await at.get(path)
            took.append(time.monotonic() - asked_at)
            assert (answer.status_code, answer.headers["X-Cache"]) == (200, "bypass")
        at.figures.append(f"reads past the cache, p50 {1000 * statistics.median(took):.1f} ms")
        assert statistics.median(took) < LATENCY_SECONDS - JITTER_SECONDS
    return Sign("reads are hits again", lambda: all_are("hit"))


async def events_wait_for_kafka(at: Whole, how: How, fault: Fault) -> Sign:
    """The outbox grows, which its age tells. One that is slow has events later, and all of them."""
    order_id = await _on_screen(at)
    shown = _cancellation_shown(at, order_id)
    async with fault:
        await at.cancelled(order_id)
        if how is How.SLOWED:
            await eventually(shown.seen, shown.said, seconds=20)
        else:

            async def grown() -> bool:
                age = await metric(at.stack, "outbox-relay", f"outbox_oldest_age_seconds{OUTBOX}")
                return age > 1 and await metric(at.stack, "outbox-relay", f"outbox_depth{OUTBOX}") > ORDERS

            await eventually(grown, "age and depth of the outbox", seconds=20, every=0.1)
            assert not await shown.seen()
    return shown


async def reports_are_refused(at: Whole, how: How, fault: Fault) -> Sign:
    """No report is given, by the primary neither: 503 with Retry-After. A slow replica may give it."""

    async def report() -> tuple[int, bool]:
        params = "from=2026-01-01&to=2026-01-02"
        answer = await at.get(f"/v1/reports/sales?{params}", scope="reports:read")
        return answer.status_code, "retry-after" in answer.headers

    async def given() -> bool:
        return await report() == (200, False)

    await eventually(given, "a report")
    async with fault:
        found = [await report() for _ in range(3)]
        assert set(found) <= {(503, True), *([(200, False)] if how is How.SLOWED else [])}, found
    return Sign("reports are given again", given)


async def orders_stay_pending(at: Whole, how: How, fault: Fault) -> Sign:
    """What cannot be paid waits, and expires with its stock released; it is paid once the provider is back."""
    async with fault:
        reserved = await _reserved(at)
        hasty = await at.placed("pm_ok", endpoint=IMPATIENT)
        if how is How.SLOWED:
            order_id = await at.placed("pm_ok")
            await eventually(_confirmed(at, order_id).seen, "it is paid all the same", seconds=20, every=0.1)
        else:
            await eventually(_expired(at, hasty).seen, "it expires", seconds=20, every=0.1)

            async def released() -> bool:
                return await _reserved(at) == reserved

            await eventually(released, "its stock is released")
            order_id, *_ = await asyncio.gather(*(at.placed("pm_ok") for _ in range(ORDERS)))
            assert (await _order(at, order_id))["status"] == "pending"
    return _confirmed(at, order_id)


async def orders_use_their_copy(at: Whole, _: How, fault: Fault) -> Sign:
    """Products are priced and named as orders know them."""
    before = await _order(at, await at.placed())
    async with fault:
        after = await _order(at, await at.placed())
        members = ("product_id", "name", "unit_price")
        assert [[line[name] for name in members] for line in after["items"]] == [
            [line[name] for name in members] for line in before["items"]
        ]

    async def back() -> bool:
        answers = [await at.get("/readyz", endpoint=endpoint) for endpoint in ("catalog", "customers")]
        return {answer.status_code for answer in answers} == {200}

    return Sign("both are ready again", back)


async def placing_is_refused(at: Whole, how: How, fault: Fault) -> Sign:
    """What is fresh in the cache is read; whoever places is told soon to come again, and gets the one order then.

    One that is slow takes the order, or is left alone as if it were dead.
    """
    paths = [f"/v1/orders/{await at.placed()}", f"/v1/inventory/{at.product}"]

    async def hits() -> bool:
        return {(await at.get(path)).headers.get("X-Cache") for path in paths} == {"hit"}

    await eventually(hits, "what is read is in the cache")
    buyers, asked = at.load.buyers, at.asked()
    async with fault:
        before = len(buyers.refusals)
        await eventually(hits, "what is fresh is read", seconds=10)
        taken = await buyers.attempt(asked, at.url)
        assert not taken or how is How.SLOWED
        refusals = buyers.refusals[before:]
        assert {refusal.status for refusal in refusals} <= {503}
        assert all(refusal.retry_after for refusal in refusals)
        longest = max((refusal.seconds for refusal in refusals), default=0.0)
        at.figures.append(f"primary {how}: {len(refusals)} refusals, the longest took {longest:.2f} s")
        assert longest < REFUSED_WITHIN_SECONDS
    return Sign("the same request is answered", lambda: buyers.attempt(asked, at.url))


async def screens_catch_up(at: Whole, how: How, fault: Fault) -> Sign:
    """What becomes of an order meanwhile is shown late."""
    order_id = await _on_screen(at)
    async with fault:
        await at.cancelled(order_id)
        await _late(at, how, shown := _cancellation_shown(at, order_id))
    return shown


async def orders_are_paid_late(at: Whole, how: How, fault: Fault) -> Sign:
    """What is placed meanwhile is confirmed late."""
    async with fault:
        await _late(at, how, paid := _confirmed(at, await at.placed("pm_ok")))
    return paid


async def orders_expire_late(at: Whole, how: How, fault: Fault) -> Sign:
    """What is not paid in time expires late."""
    async with fault:
        await _late(at, how, expired := _expired(at, await at.placed(LATE, endpoint=IMPATIENT)))
    return expired


async def _late(at: Whole, how: How, sign: Sign) -> None:
    """Orders are taken meanwhile, and who is frozen does nothing."""
    await at.load.more(ORDERS)
    assert how is not How.FROZEN or not await sign.seen()


async def _on_screen(at: Whole) -> str:
    """An order that the buyer has before them."""
    order_id = await at.placed()

    async def seen() -> bool:
        return order_id in at.screen.had

    await eventually(seen, "a new order is on a screen")
    return order_id


def _cancellation_shown(at: Whole, order_id: str) -> Sign:
    async def seen() -> bool:
        return bool(at.screen.latest[order_id]["type"] == "order.cancelled")

    return Sign("its cancellation is on a screen", seen)


def _confirmed(at: Whole, order_id: str) -> Sign:
    async def seen() -> bool:
        return bool((await _order(at, order_id))["status"] == "confirmed")

    return Sign("it is paid and confirmed", seen)


def _expired(at: Whole, order_id: str) -> Sign:
    async def seen() -> bool:
        order = await _order(at, order_id)
        return (order["status"], order["cancel_reason"]) == ("cancelled", "expired")

    return Sign("it has expired", seen)


async def _order(at: Whole, order_id: str) -> dict[str, Any]:
    answer = await at.get(f"/v1/orders/{order_id}")
    assert answer.status_code == 200, answer.text
    order: dict[str, Any] = answer.json()
    return order


async def _reserved(at: Whole) -> int:
    return int((await at.get(f"/v1/inventory/{at.product}")).json()["reserved"])
