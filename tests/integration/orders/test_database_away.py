"""The primary or the replica does not answer: what goes on, what is refused and how soon, and that it all comes back.

PostgreSQL is frozen (SIGSTOP of all its processes) or killed; orders-api runs in this process, with the cache.
"""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeAlias

import asyncpg
import httpx
import psutil
import pytest

from services.catalog.settings import CatalogSettings
from services.common import caches, db, ids
from services.common.cache import breaker
from services.common.db import Database
from services.common.db_errors import TransientError
from services.common.db_watch import FAILURES, LATE_SECONDS, RESET_SECONDS
from services.customers.settings import CustomersSettings
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import reports
from services.orders.settings import OrdersSettings
from tests.catalog import opened_catalogue
from tests.consuming import metric
from tests.customers import opened_customers
from tests.faults.conftest import migrated
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE, Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ANSWERED_SECONDS = 4.0  # 1 s is promised, of a machine that has time; without the watch a statement takes 6
BACK_SECONDS = 60.0
BUYERS = 30


@pytest.fixture(scope="module")
async def replicated(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> AsyncIterator[Stack]:
    """A PostgreSQL of these tests' own, with a replica. What it has acknowledged survives its death."""
    settings = StackSettings(
        home=tmp_path_factory.mktemp("away"),
        port_base=free_port_base(),
        valkey_url=valkey_url,
        kafka_url="127.0.0.1:1",
    )
    async with Stack(settings, processes=(), prepare=migrated, replica=True) as started:
        yield started


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow just now is no cache that is away."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))


@pytest.fixture
async def shop(replicated: Stack, valkey_url: str, issuer: tuple[Path, str]) -> AsyncIterator[Shop]:
    """orders-api, which has answered already: it knows the issuer's keys, and its statements are prepared."""
    settings = OrdersSettings(
        postgres_url=replicated.addresses.postgres_as("orders_api"),
        replica_url=replicated.addresses.replica or "",
        valkey_url=valkey_url,
        issuer_url=issuer[1],
        audience=AUDIENCE,
    )
    owner = await asyncpg.connect(replicated.addresses.postgres)
    async with opened_shop(settings, issuer[0], owner) as opened:
        await opened.placed()
        yield opened
    owner.terminate()


@contextmanager
def frozen(stack: Stack, directory: str) -> Iterator[None]:
    """All processes of the PostgreSQL there stand still until the end of the block."""
    where, found = str(stack.settings.home / directory), []
    for one in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended meanwhile
            if one.name().startswith("postgres") and one.cwd() == where:
                found.append(one)
    assert len(found) > 3
    try:
        for one in found:  # the postmaster first: a backend that dies meanwhile is not missed
            one.send_signal(signal.SIGSTOP)
        yield
    finally:
        for one in found:
            if one.is_running():
                one.send_signal(signal.SIGCONT)


async def placed_or_refused(shop: Shop, product: str, key: str) -> tuple[httpx.Response, float]:
    started = time.monotonic()
    response = await shop.place((product, 1), key=key)
    return response, time.monotonic() - started


def assert_unavailable(response: httpx.Response) -> None:
    assert response.status_code == 503, response.text
    assert response.json()["code"] == "unavailable"
    assert response.headers["retry-after"] == "1"


async def test_on_a_frozen_primary_placing_is_refused_within_a_second_and_goes_on_when_it_is_back(
    shop: Shop, replicated: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    product = await shop.product()
    keys = [secrets.token_hex(8) for _ in range(BUYERS)]
    with frozen(replicated, "postgres"):
        first = await asyncio.gather(*(placed_or_refused(shop, product, key) for key in keys))
        assert metric("breaker_state", breaker="primary") > 0
        rejections = metric("breaker_rejections_total", breaker="primary")
        later = await asyncio.gather(*(placed_or_refused(shop, product, key) for key in keys))
        assert metric("breaker_rejections_total", breaker="primary") >= rejections + BUYERS
        for response, seconds in [*first, *later]:
            assert_unavailable(response)
            assert seconds < ANSWERED_SECONDS
    back_at = time.monotonic()

    async def answered() -> httpx.Response | None:
        response = await shop.place((product, 1), key=keys[0])
        return response if response.status_code == 201 else None

    order = await eventually(answered, "an order is taken", seconds=BACK_SECONDS)
    back = time.monotonic() - back_at
    again = await asyncio.gather(*(shop.place((product, 1), key=key) for key in keys))
    assert order is not None
    assert again[0].content == order.content
    assert {one.status_code for one in again} == {201}
    assert await shop.stock(product) == (100, BUYERS)
    with capsys.disabled():
        slowest = [max(seconds for _, seconds in answers) for answers in (first, later)]
        print(f"\n503 after {slowest[0]:.3f} s at most, later {slowest[1]:.3f} s; back after {back:.3f} s")  # noqa: T201


async def test_while_the_primary_is_frozen_what_is_fresh_in_the_cache_is_answered(
    shop: Shop, replicated: Stack, valkey_url: str, issuer: tuple[Path, str]
) -> None:
    settings: dict[str, str] = {"valkey_url": valkey_url, "issuer_url": issuer[1], "audience": AUDIENCE}
    as_role = replicated.addresses.postgres_as
    of_catalog = CatalogSettings(postgres_url=as_role("catalog_api"), **settings)  # type: ignore[arg-type]
    of_customers = CustomersSettings(postgres_url=as_role("customers_api"), **settings)  # type: ignore[arg-type]
    async with (
        opened_catalogue(of_catalog, issuer[0], shop.owner) as catalogue,
        opened_customers(of_customers, issuer[0], shop.owner) as customers,
    ):
        product = await shop.product()
        order = await shop.placed((product, 1))
        other = await shop.placed((product, 1))
        cached: list[Callable[[], Awaitable[httpx.Response]]] = [
            lambda: shop.get(f"/v1/orders/{order['order_id']}"),
            lambda: shop.get(f"/v1/inventory/{product}"),
            lambda: catalogue.get(f"/v1/products/{product}"),
            customers.get,
        ]
        before = [await read() for read in cached]
        with frozen(replicated, "postgres"):
            # What is not cached is asked of the primary, of each of the three.
            refused = await asyncio.gather(
                shop.get(f"/v1/orders/{other['order_id']}"),
                shop.client.get("/readyz"),
                catalogue.client.get("/readyz"),
                customers.client.get("/readyz"),
            )
            for response in refused:
                assert_unavailable(response)
            for read, first in zip(cached, before, strict=True):
                response = await read()
                assert (response.status_code, response.headers["x-cache"]) == (200, "hit")
                assert response.content == first.content

        async def ready() -> bool:
            apis = (shop.client, catalogue.client, customers.client)
            return all([(await client.get("/readyz")).status_code == 200 for client in apis])

        await eventually(ready, "all are ready again", seconds=BACK_SECONDS)


async def test_on_a_frozen_replica_orders_go_on_reports_are_refused_and_readiness_says_so(
    shop: Shop, replicated: Stack
) -> None:
    keeper = Database(replicated.addresses.postgres_as("orders_maintenance"), application_name="test", size_max=1)
    await keeper.open()
    await reports.beat(keeper)
    await keeper.close()

    async def report() -> httpx.Response:
        return await shop.get("/v1/reports/sales", scope="reports:read", **{"from": "2026-11-01", "to": "2026-11-02"})

    async def given() -> bool:
        return (await report()).status_code == 200

    async def warnings() -> list[str]:
        response = await shop.client.get("/readyz")
        assert response.status_code == 200
        return [warning for warning in response.json()["warnings"] if "replica" in warning]

    await eventually(given, "the replica follows")
    product = await shop.product(stock=1_000_000)
    with frozen(replicated, "replica"):
        started = time.monotonic()
        asked = asyncio.create_task(report())
        while not asked.done():
            assert (await shop.place((product, 1))).status_code == 201
        response = await asked
        assert time.monotonic() - started < ANSWERED_SECONDS
        assert (response.status_code, response.headers["retry-after"]) == (503, "10")
        assert await warnings() == ["replica does not answer: it is left alone"]
        assert metric("breaker_state", breaker="primary") == 0
    await eventually(given, "reports are given again", seconds=BACK_SECONDS)
    assert await warnings() == []


async def test_it_opens_at_the_third_question_and_then_one_a_window_is_asked_however_many_call(
    replicated: Stack,
) -> None:
    name, one = "watched-50", db.statement("test_one", "SELECT 1 AS one", {})
    database = Database(replicated.addresses.postgres_as("orders_api"), application_name=name, size_max=4, name=name)
    await database.open()
    outcomes: set[str] = set()
    started = time.monotonic()

    async def calls() -> None:
        while database.breaker.state != "closed" or not outcomes:
            try:
                await database.rows(one)
            except TransientError as error:
                outcomes.add(error.reason)
            await asyncio.sleep(0.01)

    def failed() -> float:
        return metric("breaker_failures_total", breaker=name)

    def probed() -> float:
        return metric("breaker_probes_total", breaker=name, outcome="failure")

    with frozen(replicated, "postgres"):
        callers = [asyncio.create_task(calls()) for _ in range(50)]

        async def opened() -> bool:
            return metric("breaker_state", breaker=name) == 2

        await eventually(opened, "it is open", every=0.005)
        assert failed() == FAILURES + probed()

        async def probed_twice() -> bool:
            return probed() >= 2

        await eventually(probed_twice, "two windows have passed", every=0.005)
        assert time.monotonic() - started > FAILURES * LATE_SECONDS + probed() * RESET_SECONDS
        assert failed() == FAILURES + probed()
        assert outcomes == {"connection", "left_alone"}
    async with asyncio.timeout(BACK_SECONDS):
        await asyncio.gather(*callers)
    assert metric("breaker_probes_total", breaker=name, outcome="success") == 1
    assert len(await database.rows(one)) == 1
    await database.close()


async def test_a_killed_primary_is_back_in_use_without_a_restart_of_the_process(shop: Shop, replicated: Stack) -> None:
    product = await shop.product(stock=1_000_000)
    await replicated.kill("postgres")
    keys: list[str] = []
    met: set[int] = set()

    async def taken() -> bool:
        keys.append(secrets.token_hex(8))
        response, seconds = await placed_or_refused(shop, product, keys[-1])
        met.add(response.status_code)
        assert seconds < ANSWERED_SECONDS
        return response.status_code == 201

    while not replicated.restarts["postgres"]:
        await taken()
    await replicated.ready("postgres")
    await eventually(taken, "an order is taken", seconds=BACK_SECONDS)
    assert met <= {201, 503}
    owner = await asyncpg.connect(replicated.addresses.postgres)
    reserved = "SELECT reserved FROM orders.inventory i WHERE product_id = $1"
    made = "SELECT count(*) FROM orders.idempotency_keys WHERE key = ANY($1)"
    assert await owner.fetchval(reserved, ids.from_text(product)) == await owner.fetchval(made, keys)
    await owner.close()
