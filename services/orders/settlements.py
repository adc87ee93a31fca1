"""What payments say is carried out on their orders. One function applies one batch, in one transaction an order."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
import structlog
from prometheus_client import Counter as Metric

from services.common import clock, ids
from services.common.after_commit import AfterCommit
from services.common.cached import Key
from services.common.clock import Clock
from services.common.db import Database, WriteConnection
from services.common.db_errors import Refused
from services.common.handle import PoisonError
from services.common.ids import OrderKey
from services.common.inbox import Arrival, Verdict, arrival
from services.common.money import AMOUNT_MAX
from services.common.stream import Received
from services.contracts import envelope
from services.contracts.orders import EventType, Order, OrderStatus, PaymentStatus
from services.contracts.payments import Payment, PaymentEventType, PaymentState, payment_of
from services.orders import domain, steps
from services.orders.histories import UNFOLDABLE
from services.orders.repository import INBOX, LOCK_ORDER

ACTOR: Final = "process:orders-projector"
_KNOWN: Final = frozenset(PaymentEventType)

log = structlog.get_logger()
order_settlements_total = Metric("order_settlements_total", "Events that payments have left on their orders", ["event"])


@dataclass(frozen=True, slots=True)
class _Said:
    """A message of the stream, and the payment it tells; None for a type that is not known."""

    message: Received
    arrived: Arrival
    payment: Payment | None


async def settle_orders(
    database: Database, after_commit: AfterCommit, topic: str, messages: Sequence[Received], *, now: Clock = clock.now
) -> Mapping[str, int]:
    """Each order stands where the newest of `messages` about its payment says, and never goes back; gives the outcomes.

    One READ COMMITTED transaction an order: inbox row, order row, stock. What is committed before something is raised
    is stale when it comes again. A payment event carries the whole payment, so a gap applies and is only counted.
    PoisonError also for a payment of no order of ours, or that cannot be its own: redeliver it once that is mended.
    """
    by_order: dict[str, list[_Said]] = {}
    for message in messages:
        said = _read(message)
        by_order.setdefault(said.arrived.key, []).append(said)
    outcomes: Counter[str] = Counter()
    for said_of_one in by_order.values():
        outcomes += await _settle(database, after_commit, topic, said_of_one, now)
    return outcomes


async def _settle(
    database: Database, after_commit: AfterCommit, topic: str, said: Sequence[_Said], now: Clock
) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    newest: _Said | None = None
    taken: list[EventType] = []
    stale: dict[Key, int] = {}
    async with database.transaction() as connection:
        verdicts = await INBOX.judge(connection, topic, [one.arrived for one in said])
        for one, verdict in zip(said, verdicts, strict=True):
            if verdict is Verdict.STALE:
                outcomes["stale"] += 1
            elif one.payment is None:
                outcomes["ignored"] += 1
            else:
                outcomes["applied" if verdict is Verdict.NEXT else "applied_after_gap"] += 1
                newest = one
        if newest is not None and newest.payment is not None:
            taken = await _take_all(connection, newest, newest.payment, stale, now)
    for event in taken:
        order_settlements_total.labels(event).inc()
    if taken:
        await after_commit(stale)
    return outcomes


async def _take_all(
    connection: WriteConnection, said: _Said, payment: Payment, stale: dict[Key, int], now: Clock
) -> list[EventType]:
    """Every step that is missing, in their order; the order's row stays locked. PoisonError when there can be none.

    What is wrong with one order becomes a dead letter, so that the payments of others do not wait for its repair.
    """
    key = _key(payment)
    if not await LOCK_ORDER.rows(connection, **key._asdict()):
        raise PoisonError(said.message, "there is no such order")
    try:
        order = await steps.read(connection, key)
    except UNFOLDABLE as error:
        raise PoisonError(said.message, f"its order does not fold: {error!r}") from error
    taken: list[EventType] = []
    try:
        while (step := domain.settle(order, payment)) is not None:
            at = now()
            order = await steps.take(
                connection,
                order,
                step,
                stale,
                event_id=ids.new_id(at),
                actor=ACTOR,
                now=at,
                traceparent=envelope.traceparent_of(said.message.headers),
            )
            taken.append(step.event)
    except (domain.ContradictionError, Refused) as error:
        raise PoisonError(said.message, f"its order cannot follow: {error}") from error
    if taken:
        _warn_of_money(order)
    return taken


def _warn_of_money(order: Order) -> None:
    """What no step of ours leads to, but a provider's may: somebody has to look at it there."""
    cancelled = order.status == OrderStatus.CANCELLED
    if cancelled and order.captured_amount > order.refunded_amount:
        log.warning("settlement.captured_of_cancelled_order", order_id=order.order_id)
    if not cancelled and order.payment_status == PaymentStatus.VOIDED:
        log.warning("settlement.voided_of_open_order", order_id=order.order_id, status=order.status)


def _read(message: Received) -> _Said:
    """What has arrived, and the payment of it; None for a type that is not known. PoisonError."""
    arrived = arrival(message)
    if arrived.type not in _KNOWN:
        return _Said(message, arrived, None)
    try:
        event = orjson.loads(message.value)
        payment = payment_of(event)
        told = (event["order_id"], event["version"], payment.order_id, payment.version)
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise PoisonError(message, f"it is no payment event: {error!r}") from error
    if told != (arrived.key, arrived.version) * 2:
        raise PoisonError(message, f"key and ce_sequence say {arrived.key} {arrived.version}, the body {told}")
    try:
        _key(payment)
    except ValueError as error:
        raise PoisonError(message, f"its key is no order id: {error}") from error
    if (wrong := _wrong(payment)) is not None:
        raise PoisonError(message, wrong)
    return _Said(message, arrived, payment)


def _key(payment: Payment) -> OrderKey:
    return ids.order_key(ids.from_text(payment.order_id))


def _wrong(payment: Payment) -> str | None:
    """Why no payment can be so."""
    failure: Any = payment.failure  # whatever JSON has, as types are only promised
    amounts = (payment.refunded_amount, payment.captured_amount, payment.authorized_amount, payment.amount)
    if any(type(amount) is not int for amount in amounts):
        return f"an amount is no integer: {amounts!r}"
    if not 0 <= amounts[0] <= amounts[1] <= amounts[2] <= amounts[3] <= AMOUNT_MAX:
        return f"refunded, captured, authorized and amount cannot be {amounts}"
    if payment.status not in list(PaymentState):
        return f"its status is none: {payment.status!r}"
    if failure is not None and (not isinstance(failure, str) or "\0" in failure):
        return f"its failure is no text: {failure!r}"
    match payment.status:
        case PaymentState.AUTHORIZED if payment.authorized_amount != payment.amount:
            return f"it is authorized with {payment.authorized_amount} of {payment.amount}"
        case PaymentState.VOIDED if payment.captured_amount:
            return f"it is voided with {payment.captured_amount} captured"
        case PaymentState.REQUESTED | PaymentState.FAILED if payment.authorized_amount:
            return f"it is {payment.status} with {payment.authorized_amount} authorized"
    return None
