"""What writes have replaced reaches the cache, whatever else is dead; while the cache is, it waits, not for ever."""

from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from typing import TypeAlias

import asyncpg
import pytest

from services.common import caches, ids
from services.common.cache import Cache, breaker
from services.common.cached import Entry, Key
from services.common.invalidations import keys_of
from services.contracts.cache import INVENTORY, ORDER
from services.embedded.room import free_port_base
from services.relay.invalidations import INVALIDATIONS
from services.relay.settings import RelaySettings
from tests.faults.waiting import eventually
from tests.integration.relay.conftest import metric, relaying
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow just now is no cache that is away."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))


@pytest.fixture
async def cache(valkey_url: str) -> AsyncIterator[Cache]:
    opened = caches.cache(valkey_url)
    assert opened is not None
    yield opened
    await opened.close()


def _nowhere() -> str:
    return f"redis://127.0.0.1:{free_port_base()}/0"


async def _cached(cache: Cache, key: Key, version: int) -> None:
    """The cache has the thing as it was at that version."""

    async def load() -> Entry:
        return Entry("", version, b"old")

    for _ in range(2):
        answer = await cache.read(key, load, reader=None)
    assert answer is not None
    assert answer.outcome == "hit"


async def _gone(cache: Cache, key: Key) -> bool:
    async def load() -> None:
        return None

    return await cache.read(key, load, reader=None) is None


async def _waiting(owner: Owner) -> int:
    found: int = await owner.fetchval("SELECT count(*) FROM orders.invalidations")
    return found


async def test_every_write_tells_what_it_has_replaced_in_its_own_transaction(shop: Shop, owner: Owner) -> None:
    products = [await shop.product(), await shop.product()]
    order = await shop.placed((products[0], 1), (products[1], 2), (products[0], 1))
    order = (await shop.command(order, "ship")).json()
    order = (await shop.command(order, "deliver")).json()
    await shop.adjust(products[0], 5)
    refused = await shop.place((products[0], 10_000))
    assert refused.status_code == 409
    rows = await owner.fetch("SELECT shard, keys::text AS keys FROM orders.invalidations ORDER BY position")
    of = {product: Key(INVENTORY, product) for product in products}
    own = Key(ORDER, order["order_id"])
    assert [keys_of(row["keys"]) for row in rows] == [
        {of[products[0]]: 2, of[products[1]]: 2},
        {own: 2, of[products[0]]: 3, of[products[1]]: 3},
        {own: 3},
        {of[products[0]]: 4},
    ]
    shards = {row["shard"] for row in rows[:3]}
    assert shards == {ids.order_key(ids.from_text(order["order_id"])).shard}


async def test_what_the_writer_could_not_tell_the_relay_does_while_the_broker_is_dead(
    shop: Shop, settings: RelaySettings, owner: Owner, cache: Cache
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    order = (await shop.command(order, "ship")).json()
    keys = {Key(ORDER, order["order_id"]): 1, Key(INVENTORY, product): 2}
    for key, version in keys.items():
        await _cached(cache, key, version)
    async with relaying(settings, kafka_url=f"127.0.0.1:{free_port_base()}"):

        async def empty() -> bool:
            return not await _waiting(owner)

        await eventually(empty, "told and deleted")
        assert await owner.fetchval("SELECT count(*) FROM orders.outbox") == 2
    for key in keys:
        assert await _gone(cache, key)


async def test_rows_wait_for_a_dead_cache_and_are_dropped_once_no_cache_can_hold_what_they_name(
    shop: Shop, settings: RelaySettings, owner: Owner
) -> None:
    await shop.placed()
    await shop.placed()
    old = await owner.fetchval("SELECT max(position) FROM orders.invalidations")
    await owner.execute(
        "UPDATE orders.invalidations SET created_at = now() - $2::interval WHERE position = $1",
        *(old, INVALIDATIONS[0].kept + timedelta(seconds=1)),
    )
    dropped = metric("invalidations_drained_total", outcome="dropped")
    failed = metric("cache_invalidations_total", outcome="failed")
    async with relaying(settings, cache_url=_nowhere()):

        async def seen() -> bool:
            return (
                metric("invalidations_drained_total", outcome="dropped") == dropped + 1
                and metric("cache_invalidations_total", outcome="failed") > failed
            )

        await eventually(seen, "the old one dropped, the young one tried")
        assert await _waiting(owner) == 1
        assert not await owner.fetchval("SELECT count(*) FROM orders.invalidations WHERE position = $1", old)

        async def told() -> bool:
            return metric("outbox_depth", outbox="orders.invalidations") == 1

        await eventually(told, "the depth in metrics")
    async with relaying(settings):

        async def empty() -> bool:
            return not await _waiting(owner)

        await eventually(empty, "told when the cache is there again")
