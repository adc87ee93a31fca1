"""What changes a payment and its steps. One function is one transaction; it is committed, or nothing of it is there."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.db import Database, WriteConnection
from services.contracts.payments import Payment, PaymentEventType
from services.payments import domain, repository
from services.payments.domain import Move, Step, StepState
from services.payments.provider import Standing
from services.payments.repository import DELETE_STEPS_BATCH, Claim, claim_from, key_of, payment_from

ACTOR: Final = "process:payments-worker"


@dataclass(frozen=True, slots=True)
class Asked:
    """What one event of an order asks for: a step, and a payment when it is the first. `at` is when it happened."""

    order_id: str
    step: Step
    payment: Payment | None
    traceparent: str | None
    at: datetime


async def create_month(database: Database, month: date) -> bool:
    """Payments of orders of that month have their partition; whether this made it. LockTimeoutError after 2 s."""
    rows = await database.rows(repository.CREATE_MONTH, month=month)
    return bool(rows[0]["made"])


async def take(connection: WriteConnection, asked: Sequence[Asked]) -> int:
    """Each of `asked`, in the order of their orders' versions, is on the list of what is to be done; gives how many.

    In the transaction of the inbox. Payments are locked in the order of their ids; what is new has nobody to wait for.
    Not taken: what an order without a payment asks for, what was taken before (the inbox forgets, the payment does
    not), and the void of a payment that has failed.
    """
    taken = 0
    known = {order_id: (row, row["order_version"]) for order_id, row in (await _locked(connection, asked)).items()}
    status: dict[str, str] = {order_id: row["status"] for order_id, (row, _) in known.items()}
    version: dict[str, int] = {order_id: seen for order_id, (_, seen) in known.items()}
    for one in asked:
        if one.payment is not None and one.order_id not in version:
            await _add_payment(connection, one.payment)
            status[one.order_id], version[one.order_id] = one.payment.status, 0
        if one.step.number <= version.get(one.order_id, one.step.number):
            continue  # no payment, or taken before
        if not domain.is_needed(one.step, status[one.order_id]):
            continue
        await repository.ADD_STEP.rows(
            connection,
            **key_of(one.order_id),
            number=one.step.number,
            kind=one.step.kind.value,
            amount=one.step.amount,
            final=one.step.final,
            traceparent=one.traceparent,
            asked_at=one.at,
        )
        version[one.order_id] = one.step.number
        taken += 1
    return taken


async def _locked(connection: WriteConnection, asked: Sequence[Asked]) -> dict[str, Any]:
    keys = [ids.order_key(ids.from_text(order_id)) for order_id in {one.order_id for one in asked}]
    rows = await repository.LOCK_PAYMENTS.rows(
        connection,
        order_ids=[key.order_id for key in keys],
        created_ats=[key.created_at for key in keys],
        shards=[key.shard for key in keys],
    )
    return {ids.to_text(row["order_id"]): row for row in rows}


async def _add_payment(connection: WriteConnection, payment: Payment) -> None:
    await repository.ADD_PAYMENT.rows(
        connection,
        **key_of(payment.order_id),
        user_id=UUID(payment.user_id),
        status=payment.status,
        provider=payment.provider,
        payment_method=payment.payment_method,
        currency=payment.currency,
        amount=payment.amount,
        order_version=domain.FIRST,
        updated_at=datetime.fromisoformat(payment.updated_at),
    )


async def claim(database: Database, *, limit: int, lease_seconds: float) -> list[Claim]:
    """Up to `limit` steps that are due, the oldest first; for `lease_seconds` nobody else is given them.

    Unless a callback comes for one: then two may ask about the same step, which the provider's keys make harmless.
    """
    until = time.monotonic() + lease_seconds
    rows = await database.rows(repository.CLAIM_STEPS, limit=limit, lease_seconds=lease_seconds)
    return [claim_from(row, until) for row in rows]


async def record(
    database: Database, claim: Claim, standing: Standing, end: StepState | None, *, due_in_seconds: float = 0.0
) -> list[PaymentEventType]:
    """The payment is at least as far as `standing`, each visible change at a version of its own with its event in the
    outbox; gives their types, [] when all was known. The step has ended as `end` says, or is due again.

    READ COMMITTED, under the lock of the payment's row, so that standings that come at once come one after another.
    """
    key = key_of(claim.payment.order_id)
    async with database.transaction() as connection:
        payment = await _lock(connection, claim)
        now = clock.now()
        moves = domain.moved(payment, standing, at=clock.to_text(now))
        for move in moves:
            await _add_event(connection, key, move, claim.traceparent, now)
        if not moves and payment.reference is None and standing.reference:
            await repository.SET_REFERENCE.rows(connection, **key, reference=standing.reference)
        if end is None:
            await _postpone(connection, claim, due_in_seconds, None)
        else:
            await _end(connection, claim, end, None)
    return [type_ for type_, _ in moves]


async def refuse(database: Database, claim: Claim, reason: str) -> list[PaymentEventType]:
    """The step has ended as refused, and is listed as such; an authorisation that is refused has failed."""
    key = key_of(claim.payment.order_id)
    async with database.transaction() as connection:
        payment = await _lock(connection, claim)
        now = clock.now()
        standing = domain.standing_of_refused(payment, claim.step, reason)
        moves = [] if standing is None else domain.moved(payment, standing, at=clock.to_text(now))
        for move in moves:
            await _add_event(connection, key, move, claim.traceparent, now)
        await _end(connection, claim, StepState.REFUSED, reason)
    return [type_ for type_, _ in moves]


async def postpone(database: Database, claim: Claim, *, due_in_seconds: float, error: str) -> None:
    """The step is due again after so long, unless somebody else has claimed it since."""
    async with database.session() as connection:
        await _postpone(connection, claim, due_in_seconds, error)


async def unclaim(database: Database, claim: Claim, *, due_in_seconds: float, error: str) -> None:
    """The same, and it counts as if it had not been claimed: the provider was not asked."""
    key = key_of(claim.payment.order_id)
    await database.rows(
        repository.UNCLAIM_STEP,
        **key,
        number=claim.step.number,
        attempts=claim.attempt,
        due_in_seconds=due_in_seconds,
        error=error,
    )


async def hasten(database: Database, order_id: str) -> bool:
    """The step of the order that is open, if any, is due now; gives whether there is one. ValueError: no order's id."""
    key = key_of(order_id)
    return bool(await database.rows(repository.HASTEN_STEP, order_id=key["order_id"], shard=key["shard"]))


async def delete_steps(database: Database, *, older_than: datetime) -> int:
    """No step that was done or dropped before is there any more; gives how many went. A transaction a batch."""
    deleted = 0
    while True:
        rows = await database.rows(repository.DELETE_STEPS, older_than=older_than)
        deleted += len(rows)
        if len(rows) < DELETE_STEPS_BATCH:
            return deleted


async def _lock(connection: WriteConnection, claim: Claim) -> Payment:
    key = ids.order_key(ids.from_text(claim.payment.order_id))
    rows = await repository.LOCK_PAYMENTS.rows(
        connection, order_ids=[key.order_id], created_ats=[key.created_at], shards=[key.shard]
    )
    return payment_from(rows[0])


async def _add_event(
    connection: WriteConnection, key: dict[str, Any], move: Move, traceparent: str | None, now: datetime
) -> None:
    type_, payment = move
    await repository.ADD_EVENT.rows(
        connection,
        **key,
        slice=key["shard"] % ids.SLICES,
        status=payment.status,
        reference=payment.reference,
        authorized_amount=payment.authorized_amount,
        captured_amount=payment.captured_amount,
        refunded_amount=payment.refunded_amount,
        failure=payment.failure,
        version=payment.version,
        updated_at=now,
        event_id=ids.new_id(now),
        type=type_.value,
        data=orjson.dumps({"payment": payment}).decode(),
        actor=ACTOR,
        traceparent=traceparent,
    )


async def _postpone(connection: WriteConnection, claim: Claim, due_in_seconds: float, error: str | None) -> None:
    key = key_of(claim.payment.order_id)
    await repository.POSTPONE_STEP.rows(
        connection,
        **key,
        number=claim.step.number,
        attempts=claim.attempt,
        due_in_seconds=due_in_seconds,
        error=error,
    )


async def _end(connection: WriteConnection, claim: Claim, state: StepState, error: str | None) -> None:
    key = key_of(claim.payment.order_id)
    await repository.END_STEP.rows(connection, **key, number=claim.step.number, state=state.value, error=error)
