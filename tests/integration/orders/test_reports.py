"""Reports of sales: from a real streaming replica and from nowhere else, as of when it is, or not at all."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from services.cli import openapi
from services.common import clock, ids
from services.common.db import Database
from services.embedded.addresses import with_user
from services.embedded.supervisor import Stack
from services.orders import reports
from services.orders.sales import SALES
from services.orders.settings import OrdersSettings
from tests.contracts.description import Description, refused
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE, Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

DEC = date(2026, 12, 1)
MUG, TEAPOT = (ids.from_text(text) for text in ("01KAPKY98W3V5T2J8QK3F0S1XM", "01KAPKY98W7W2SY8YD52EAN5AE"))
DAYS = {
    ("2026-10-31", "USD"): (9, 9, 900, -9, 9, 0, 0, 0),
    ("2026-11-01", "JPY"): (1, 1, 90071992547409930, 0, 0, 0, 0, 0),  # beyond 2^53
    ("2026-11-01", "USD"): (1, 2, 200, -5, 7, 0, 0, 0),
    ("2026-11-30", "USD"): (2, 3, 300, 0, 0, 1, 100, 50),
    ("2026-12-01", "USD"): (7, 7, 700, 0, 0, 0, 0, 0),
}


@pytest.fixture
async def owner(replicated: Stack) -> AsyncIterator[Owner]:
    """On the primary."""
    connection = await asyncpg.connect(replicated.addresses.postgres)
    await connection.execute("TRUNCATE orders.sales_daily, orders.sales_daily_product, orders.orders_by_status")
    await connection.executemany(
        "INSERT INTO orders.sales_daily VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
        [(date.fromisoformat(day), currency, *sums) for (day, currency), sums in DAYS.items()],
    )
    first = date(2026, 11, 1)
    await connection.executemany(
        "INSERT INTO orders.sales_daily_product VALUES ($1, 'USD', $2, $3, $4)",
        [(first, TEAPOT, 2, 200), (date(2026, 11, 30), TEAPOT, 1, 100), (first, MUG, 9, 9), (DEC, MUG, 5, 5)],
    )
    await connection.executemany(
        "INSERT INTO orders.orders_by_status VALUES ($1, 'USD', $2, $3, $4)",
        [(first, "shipped", 1, 202), (first, "pending", 0, 0), (DEC, "shipped", 7, 700)],
    )
    yield connection
    await connection.close()


@pytest.fixture
async def keeper(replicated: Stack) -> AsyncIterator[Database]:
    """As orders-maintenance."""
    database = Database(replicated.addresses.postgres_as("orders_maintenance"), application_name="test", size_max=1)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def open_shop(
    replicated: Stack, valkey_url: str, issuer: tuple[Path, str], owner: Owner
) -> Callable[..., AbstractAsyncContextManager[Shop]]:
    """Call with settings for orders-api with them."""

    @asynccontextmanager
    async def opened(**settings: Any) -> AsyncIterator[Shop]:
        told = OrdersSettings(
            postgres_url=replicated.addresses.postgres_as("orders_api"),
            valkey_url=valkey_url,
            cache_url="",
            issuer_url=issuer[1],
            audience=AUDIENCE,
            **{"replica_url": replicated.addresses.replica, **settings},
        )
        async with opened_shop(told, issuer[0], owner) as shop:
            shop.client.event_hooks["response"].append(Description(openapi.ORDERS).check)
            yield shop

    return opened


OpenShop = Callable[..., AbstractAsyncContextManager[Shop]]


async def ask(shop: Shop, **params: Any) -> httpx.Response:
    """GET /v1/reports/sales, of November if not told otherwise."""
    return await shop.get(
        "/v1/reports/sales", scope="reports:read", **{"from": "2026-11-01", "to": "2026-12-01", **params}
    )


async def arrived(shop: Shop, keeper: Database, owner: Owner) -> None:
    """All that the primary has by now is on the replica."""
    await reports.beat(keeper)
    at: datetime = await owner.fetchval("SELECT at FROM orders.heartbeat")

    async def seen() -> bool:
        response = await ask(shop)
        return response.status_code == 200 and response.json()["as_of"] == clock.to_text(at)

    await eventually(seen, "the replica has the heartbeat")


async def test_reports_are_sums_of_the_rollups_by_what_was_asked(
    open_shop: OpenShop, keeper: Database, owner: Owner
) -> None:
    def row(key: dict[str, str], *sums: int) -> dict[str, Any]:
        return {**key, **dict(zip(SALES, sums, strict=True))}

    async with open_shop() as shop:
        await arrived(shop, keeper, owner)
        days = [row({"day": day, "currency": of}, *sums) for (day, of), sums in DAYS.items() if "2026-11" in day]
        assert (await ask(shop)).json()["data"] == days
        assert (await ask(shop, currency="JPY")).json()["data"] == days[:1]
        assert (await ask(shop, by="month", currency="USD", to="2026-12-02")).json()["data"] == [
            row({"month": "2026-11", "currency": "USD"}, 3, 5, 500, -5, 7, 1, 100, 50),
            row({"month": "2026-12", "currency": "USD"}, 7, 7, 700, 0, 0, 0, 0, 0),
        ]
        assert (await ask(shop, by="product")).json()["data"] == [
            {"product_id": ids.to_text(MUG), "currency": "USD", "quantity": 9, "amount": 9},
            {"product_id": ids.to_text(TEAPOT), "currency": "USD", "quantity": 3, "amount": 300},
        ]
        assert (await ask(shop, by="status")).json()["data"] == [
            {"status": "shipped", "currency": "USD", "orders": 1, "amount": 202}
        ]
        nothing = (await ask(shop, **{"from": "2020-01-01", "to": "2020-01-02"})).json()
        assert nothing["data"] == []
        assert nothing["as_of"]


@pytest.mark.parametrize(
    "params",
    [
        {"to": "2026-11-01"},
        {"to": "2027-12-07"},
        {"from": "yesterday"},
        {"from": "1793491200"},
        {"by": "year"},
        {"currency": "XXX"},
        {"limit": "1"},
    ],
)
async def test_what_is_no_interval_is_refused(open_shop: OpenShop, params: dict[str, str]) -> None:
    async with open_shop() as shop:
        assert refused(await ask(shop, **params)) == "422 invalid"
        assert refused(await shop.get("/v1/reports/sales", scope="reports:read")) == "422 invalid"


async def test_only_who_may_read_reports_does(open_shop: OpenShop) -> None:
    async with open_shop() as shop:
        response = await shop.get(
            "/v1/reports/sales", scope="orders:read:any", **{"from": "2026-11-01", "to": "2026-11-02"}
        )
        assert refused(response) == "403 scope_missing"


async def test_the_primary_never_sees_a_reports_statement(
    open_shop: OpenShop, replicated: Stack, keeper: Database, owner: Owner
) -> None:
    await owner.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    async def seen() -> int:
        count: int = await owner.fetchval(
            "SELECT count(*) FROM pg_stat_statements WHERE query ~ 'pg_is_in_recovery'"
            " AND query ~ 'sales_daily|by_status' AND query !~ 'pg_stat_statements'"
        )
        return count

    await owner.execute("SELECT pg_stat_statements_reset()")
    async with open_shop() as shop:
        await arrived(shop, keeper, owner)
        for by in ("day", "month", "product", "status"):
            assert (await ask(shop, by=by)).status_code == 200
    async with open_shop(replica_url="postgresql://orders_reports@127.0.0.1:1/orders") as shop:
        assert refused(await ask(shop)) == "503 unavailable"
    assert await seen() == 0
    # Were it otherwise it would be seen: what should be the replica is the primary, and refuses.
    async with open_shop(replica_url=replicated.addresses.postgres_as("orders_reports")) as shop:
        assert refused(await ask(shop)) == "503 unavailable"
    assert await seen() == 1


async def test_without_a_replica_there_are_no_reports(open_shop: OpenShop) -> None:
    async with open_shop(replica_url="") as shop:
        response = await ask(shop)
        assert refused(response) == "503 unavailable"
        assert response.headers["retry-after"] == "10"


async def test_a_replica_that_lags_says_as_of_when_and_nothing_once_that_is_too_long_ago(
    open_shop: OpenShop, replicated: Stack, keeper: Database, owner: Owner
) -> None:
    replica = await asyncpg.connect(with_user(replicated.addresses.replica or "", "postgres", None))
    async with open_shop() as patient, open_shop(reports_lag_max_seconds=0.2) as impatient:
        await arrived(patient, keeper, owner)
        before = (await ask(patient)).json()
        await replica.execute("SELECT pg_wal_replay_pause()")
        await owner.execute("UPDATE orders.sales_daily SET orders = orders + 1")
        await reports.beat(keeper)

        async def too_late() -> bool:
            return refused_or_not(await ask(impatient)) == "503 unavailable"

        await eventually(too_late, "the bound has passed")
        assert (await ask(patient)).json() == before
        await replica.execute("SELECT pg_wal_replay_resume()")
        await arrived(patient, keeper, owner)
        assert (await ask(patient)).json()["data"][0]["orders"] == 2
    await replica.close()


def refused_or_not(response: httpx.Response) -> str:
    """`200`, or what `refused` says."""
    return "200" if response.status_code == 200 else refused(response)


async def test_as_of_goes_on_while_nothing_is_sold(open_shop: OpenShop, keeper: Database, owner: Owner) -> None:
    async with open_shop() as shop:
        await arrived(shop, keeper, owner)
        first = (await ask(shop)).json()
        await arrived(shop, keeper, owner)
        second = (await ask(shop)).json()
    assert second["data"] == first["data"]
    assert second["as_of"] > first["as_of"]


async def test_a_replica_that_was_killed_follows_again_and_one_that_cannot_is_made_anew(
    open_shop: OpenShop, replicated: Stack, keeper: Database, owner: Owner
) -> None:
    async with open_shop() as shop:
        await arrived(shop, keeper, owner)
        await replicated.kill("postgres-replica")
        assert refused_or_not(await ask(shop)) in ("503 unavailable", "200")  # it may be back already
        await replicated.ready("postgres-replica")
        await arrived(shop, keeper, owner)
        # Without its slot the primary need not keep what it has not had.
        replicated.send_signal("postgres-replica", signal.SIGSTOP)
        await owner.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'replica'"
        )
        gone = "SELECT count(*) = 0 FROM pg_replication_slots WHERE active"
        await eventually(lambda: owner.fetchval(gone), "nobody follows")
        await owner.execute("SELECT pg_drop_replication_slot('replica')")
        former = replicated.settings.home / "replica" / "former"
        former.touch()
        await replicated.kill("postgres-replica")
        await replicated.ready("postgres-replica")
        await arrived(shop, keeper, owner)
        assert not former.exists()
