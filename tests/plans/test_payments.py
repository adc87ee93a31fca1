"""Plans of payments' statements: one partition a payment, and a list of steps that is read by what is due."""

import uuid
from datetime import timedelta
from typing import TYPE_CHECKING

import asyncpg
import pytest

from loadtests.explain import Explain
from services.common import clock, ids
from services.common.ids import OrderKey
from services.payments import repository

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

PAYMENTS = 2_000  # each with a step that is done; every tenth also with an open one, of which few are due
DUE = 20


@pytest.fixture
async def keys(owner: "Connection") -> list[OrderKey]:
    """Payments of four months."""
    first = clock.month_of(clock.now())
    months = [clock.add_months(first, -n) for n in range(4)]
    for month in months:
        await owner.execute("SELECT payments.create_month($1)", month.date())
    found = [ids.new_order_key(uuid.uuid4(), months[n % 4] + timedelta(seconds=n)) for n in range(PAYMENTS)]
    await owner.executemany(
        "INSERT INTO payments.payments (order_id, created_at, shard, user_id, status, provider, payment_method,"
        " currency, amount, authorized_amount, captured_amount, refunded_amount, version, order_version, updated_at)"
        " VALUES ($1, $2, $3, $1, 'authorized', 'sandbox', 'pm', 'USD', 9, 9, 0, 0, 1, 1, now())",
        found,
    )
    await owner.executemany(
        "INSERT INTO payments.steps (order_id, created_at, shard, number, kind, amount, final, state, due_at, attempts,"
        " asked_at, ended_at) VALUES ($1, $2, $3, 1, 'authorize', 9, TRUE, 'done', NULL, 1, now(), now())",
        found,
    )
    await owner.executemany(
        "INSERT INTO payments.steps (order_id, created_at, shard, number, kind, amount, final, state, due_at, attempts,"
        " asked_at) VALUES ($1, $2, $3, 2, 'capture', 9, TRUE, 'open', now() + make_interval(secs => $4), 0, now())",
        [(*key, -60 if n < DUE else 3600) for n, key in enumerate(found[:: PAYMENTS // 200])],
    )
    await owner.execute("ANALYZE payments.payments; ANALYZE payments.steps")
    return found


async def test_claiming_reads_what_is_due_and_nothing_that_is_done_or_waits(
    explain: Explain, keys: list[OrderKey]
) -> None:
    plan = await explain(repository.CLAIM_STEPS, limit=8, lease_seconds=30.0)
    assert "ix_steps_due_at" in plan.indexes("steps")
    assert plan.scanned() == set()
    assert plan.rows_read() <= 8 * 6  # found, looked at again to be changed, its payment twice, and a void that waits
    assert keys


async def test_forgetting_reads_only_the_steps_that_ended_long_ago(
    explain: Explain, keys: list[OrderKey], owner: "Connection"
) -> None:
    await owner.execute(
        "UPDATE payments.steps SET ended_at = now() - interval '40 days' WHERE order_id = $1 AND number = 1",
        keys[1].order_id,
    )
    plan = await explain(repository.DELETE_STEPS, older_than=clock.now() - timedelta(days=30))
    assert plan.scanned() == set()
    assert plan.indexes("steps") == {"ix_steps_ended_at"}
    assert plan.rows_read() <= 4
