"""What reads all there is: in short snapshots, on the replica where there is one, and true while orders are placed."""

import asyncio
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest

from services.cli import republish
from services.cli.republish import Republished
from services.cli.target import Source
from services.common import clock, ids, snapshots
from services.common.db import Database, WriteConnection
from services.common.db_errors import TransientError
from services.common.snapshots import Snapshots, unhurried_database
from services.embedded.supervisor import Stack
from services.orders import histories
from services.orders.invariants import verify
from services.orders.seed import seed
from services.orders.settings import OrdersSettings
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ORDERS = Path(sys.executable).with_name("orders")
ALWAYS = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
SEEDED = 1_500
PAGE = 100  # orders

# What each snapshot begins with, and what reads the events of a page. Nobody else does either in these tests.
BEGINS = "begin isolation level repeatable read read only"
READS = "select order_id, version, type, data, actor, to_char%"


@pytest.fixture(scope="module")
async def past(replicated: Stack) -> Stack:
    """A month of orders, on the primary and, when a test begins, on its replica."""
    owner = await asyncpg.connect(replicated.addresses.postgres)
    await owner.execute("TRUNCATE orders.sales_daily, orders.sales_daily_product, orders.orders_by_status")
    await owner.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    await seed(replicated.addresses.postgres, products=20, orders=SEEDED, stock=10_000, months=1, seed=7)
    await owner.close()
    return replicated


@pytest.fixture
async def owner(past: Stack) -> AsyncIterator[Owner]:
    """On the primary; the replica has all of it."""
    connection = await asyncpg.connect(past.addresses.postgres)
    await arrived(past, connection)
    yield connection
    await connection.close()


def replica_of(stack: Stack) -> str:
    """Its URL, as the owner."""
    url = stack.addresses.replica_as_owner
    assert url is not None
    return url


async def arrived(stack: Stack, owner: Owner) -> None:
    """All that the primary has by now is on the replica."""
    at = await owner.fetchval("UPDATE orders.heartbeat SET at = now() RETURNING at")
    replica = await asyncpg.connect(replica_of(stack))

    async def seen() -> bool:
        return bool(await replica.fetchval("SELECT at = $1 FROM orders.heartbeat", at))

    await eventually(seen, "the replica has the heartbeat")
    await replica.close()


async def calls(owner: Owner, like: str) -> int:
    """How often the primary was asked something like that since it forgot."""
    count: int = await owner.fetchval(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements"
        " WHERE regexp_replace(lower(query), '\\s+', ' ', 'g') LIKE $1",
        like,
    )
    return count


async def forget(owner: Owner) -> None:
    await owner.execute("SELECT pg_stat_statements_reset()")


async def test_a_page_is_a_snapshot_and_what_is_planted_on_any_is_found_while_orders_are_placed(
    past: Stack, owner: Owner, valkey_url: str, issuer: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "_BATCH_ORDERS_MAX", PAGE)
    rows = await owner.fetch("SELECT order_id, tracking FROM orders.orders ORDER BY order_id")
    planted = [rows[number] for number in (0, len(rows) // 3, len(rows) // 2, -1)]
    settings = OrdersSettings(
        postgres_url=past.addresses.postgres_as("orders_api"),
        valkey_url=valkey_url,
        cache_url="",
        issuer_url=issuer[1],
        audience=AUDIENCE,
    )
    over = asyncio.Event()
    async with opened_shop(settings, issuer[0], owner) as shop:
        products = [await shop.product(stock=10_000) for _ in range(3)]

        async def buy(command: str) -> int:
            bought = 0
            while not over.is_set():
                response = await shop.command(await shop.placed(*((product, 1) for product in products)), command)
                assert response.status_code == 200, response.text
                bought += 1
            return bought

        for row in planted:
            await owner.execute("UPDATE orders.orders SET tracking = 'elsewhere' WHERE order_id = $1", row["order_id"])
        await forget(owner)
        async with asyncio.TaskGroup() as tasks:
            buyers = [tasks.create_task(buy(command)) for command in ("ship", "cancel")]
            report = await verify(past.addresses.postgres)
            begun, read = await calls(owner, BEGINS), await calls(owner, READS)
            over.set()
    for row in planted:
        await owner.execute("UPDATE orders.orders SET tracking = $2 WHERE order_id = $1", *row.values())
    assert report.violated == ["order_row_is_fold"], [v.messages for v in report.verdicts if v.violations]
    assert [violation.id for violation in report.verdicts[0].violations] == [
        ids.to_text(row["order_id"]) for row in planted
    ]
    assert report.as_of is None
    assert min(buyer.result() for buyer in buyers) > 0
    assert begun >= read >= SEEDED / PAGE


async def test_on_the_replica_the_primary_never_sees_its_statements(past: Stack, owner: Owner) -> None:
    before = clock.now()
    await arrived(past, owner)
    await forget(owner)
    report = await verify(replica_of(past), jobs=2)
    assert [message for verdict in report.verdicts for message in verdict.messages] == []
    assert report.verdicts[0].rows >= SEEDED
    assert report.as_of is not None
    assert report.as_of >= before
    assert (await calls(owner, BEGINS), await calls(owner, READS)) == (0, 0)
    # Were it otherwise it would be seen.
    assert (await verify(past.addresses.postgres)).as_of is None
    assert await calls(owner, BEGINS) >= await calls(owner, READS) > 0


async def test_events_are_republished_from_the_replica(past: Stack, owner: Owner, kafka_url: str) -> None:
    await forget(owner)
    result = Republished(f"test.{secrets.token_hex(4)}")
    await republish.run(past.addresses.postgres, kafka_url, result, within=ALWAYS, read=Source(replica_of(past), 1.0))
    assert await calls(owner, BEGINS) == 0
    assert result.as_of is not None
    assert (result.orders, result.events) == tuple(
        await owner.fetchrow("SELECT count(DISTINCT order_id), count(*) FROM orders.order_events") or ()
    )


def command(stack: Stack, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """`orders` with these arguments, beside the stack."""
    home = {"ORDERS_HOME": str(stack.settings.home), "ORDERS_PORT_BASE": str(stack.settings.port_base)}
    return subprocess.run(
        [ORDERS, *arguments], env={**os.environ, **home, **env}, capture_output=True, text=True, check=False
    )


async def test_the_command_finds_the_stacks_replica_and_says_as_of_when(past: Stack, owner: Owner) -> None:
    await forget(owner)
    done = await asyncio.to_thread(command, past, "verify", "--jobs", "1", "--json")
    assert done.returncode == 0, done.stderr
    told = orjson.loads(done.stdout)
    assert told["replica"] is True
    assert told["as_of"] >= clock.to_text(clock.now())[:10]
    assert await calls(owner, BEGINS) == 0
    given = {"ORDERS_POSTGRES_URL": past.addresses.postgres, "ORDERS_REPLICA_URL": past.addresses.replica or ""}
    done = await asyncio.to_thread(command, past, "payments", "--reconcile", **given)
    assert "Orders and payments agree." in done.stdout, done.stderr
    assert await calls(owner, BEGINS) == 0


async def test_a_replica_that_is_away_or_is_none_is_told_and_the_primary_is_there_for_who_asks(past: Stack) -> None:
    away = {"ORDERS_POSTGRES_URL": past.addresses.postgres, "ORDERS_REPLICA_URL": "postgresql://x@127.0.0.1:1/orders"}
    none = {**away, "ORDERS_REPLICA_URL": past.addresses.postgres}
    for env, trouble in ((away, "The replica does not answer"), (none, "What should be the replica is a primary")):
        done = await asyncio.to_thread(command, past, "verify", **env)
        assert (done.returncode, done.stdout) == (2, "")
        assert trouble in done.stderr
        assert "--primary" in done.stderr
    done = await asyncio.to_thread(command, past, "verify", "--jobs", "1", "--primary", **away)
    assert done.returncode == 0, done.stderr
    assert "Read on the primary." in done.stdout


@pytest.fixture
async def impatient(past: Stack, owner: Owner) -> AsyncIterator[Database]:
    """The replica, which waits for nobody who reads what it has to replay."""
    async with unhurried_database(replica_of(past), "test") as database:
        async with database.session() as connection:
            await connection.execute("ALTER SYSTEM SET max_standby_streaming_delay = 0")
            await connection.execute("SELECT pg_reload_conf()")
            await eventually(lambda: _impatient(connection), "the setting is read")
        await owner.execute("CREATE TABLE IF NOT EXISTS wanted AS SELECT 1 AS number")
        await arrived(past, owner)
        yield database
        async with database.session() as connection:
            await connection.execute("ALTER SYSTEM RESET max_standby_streaming_delay")
            await connection.execute("SELECT pg_reload_conf()")
    await owner.execute("DROP TABLE wanted")


async def _impatient(connection: WriteConnection) -> bool:
    value: str = await connection.fetchval("SHOW max_standby_streaming_delay")
    return value == "0"


async def test_what_the_replica_cancels_is_read_again(impatient: Database, owner: Owner) -> None:
    lost = 0

    async def read(connection: WriteConnection) -> int:
        nonlocal lost
        count: int = await connection.fetchval("SELECT count(*) FROM wanted")
        if lost < 2:  # what it replays now wants the table for itself, and ends whoever has read it
            lost += 1
            await owner.execute("TRUNCATE wanted")
            await connection.fetchval("SELECT pg_sleep(60)")
        return count

    reader = Snapshots(impatient)
    assert await reader.read(read) == 0
    assert (lost, reader.repeated) == (2, 2)


async def test_what_is_cancelled_again_and_again_ends_with_an_error(
    impatient: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "ATTEMPTS", 2)

    async def read(connection: WriteConnection) -> None:
        await connection.fetchval("SELECT count(*) FROM wanted")
        await owner.execute("TRUNCATE wanted")
        await connection.fetchval("SELECT pg_sleep(60)")

    reader = Snapshots(impatient)
    with pytest.raises(TransientError):
        await reader.read(read)
    assert reader.repeated == 2


async def test_who_reads_half_of_the_time_rests_as_long_as_it_has_read(past: Stack) -> None:
    async def read(connection: WriteConnection) -> Any:
        return await connection.fetchval("SELECT pg_sleep(0.2)")

    async with unhurried_database(past.addresses.postgres, "test") as database:
        reader = Snapshots(database, share=0.5)
        started = time.monotonic()
        for _ in range(3):
            await reader.read(read)
        assert time.monotonic() - started >= 3 * 0.2 + 2 * 0.2


async def test_who_may_read_all_of_the_time_does_not_rest_however_many_share_it(past: Stack) -> None:
    async with unhurried_database(past.addresses.postgres, "test") as database:
        for share, rests in ((inf / 2, False), (1.0, False), (1.0 / 2, True)):
            reader = Snapshots(database, share=share)
            await reader.read(lambda connection: connection.fetchval("SELECT pg_sleep(0.2)"))
            ended = time.monotonic()
            assert (reader._rested_at > ended) is rests
