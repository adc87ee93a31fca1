"""The primary or the replica does not answer: what goes on, what is refused and how soon, and that it all comes back.

PostgreSQL is frozen (SIGSTOP of all its processes) or killed; orders-api runs in this process, with the cache.
"""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import asyncpg
import httpx
import psutil
import pytest

from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders.settings import OrdersSettings
from tests.consuming import metric
from tests.faults.conftest import migrated
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE, Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

ANSWERED_SECONDS = 2.0  # the promise is 1 s, of a machine that has time
BACK_SECONDS = 5.0
BUYERS = 30


@pytest.fixture(scope="module")
async def replicated(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> AsyncIterator[Stack]:
    """A PostgreSQL of these tests' own, with a replica."""
    settings = StackSettings(
        home=tmp_path_factory.mktemp("away"),
        port_base=free_port_base(),
        valkey_url=valkey_url,
        kafka_url="127.0.0.1:1",
    )
    async with Stack(settings, processes=(), prepare=migrated, durable=False, replica=True) as started:
        yield started


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
    where = str(stack.settings.home / directory)
    found = [one for one in psutil.process_iter() if one.name().startswith("postgres") and one.cwd() == where]
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
        assert metric("breaker_state", breaker="primary") == 2
        rejections = metric("breaker_rejections_total", breaker="primary")
        later = await asyncio.gather(*(placed_or_refused(shop, product, key) for key in keys))
        assert metric("breaker_rejections_total", breaker="primary") == rejections + BUYERS
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
