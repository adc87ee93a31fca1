"""Orders and stock read through the cache: new after each write, only to whom they belong, and without it the same."""

import asyncio
import random
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis

from services.common import caches, clock, ids
from services.common.after_commit import AfterCommit
from services.common.cache import breaker
from services.common.cached import Entry, Key, encode
from services.contracts.cache import INVENTORY, ORDER
from services.embedded.room import free_port_base
from services.orders import expiry
from services.orders.settings import OrdersSettings
from services.relay.settings import RelaySettings
from tests.conftest import AsRole
from tests.contracts.description import Description
from tests.faults.valkey import serving
from tests.faults.waiting import eventually
from tests.integration.relay.conftest import connected, relaying
from tests.shop import Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow just now is no cache that is away."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))


@pytest.fixture
def settings(orders_settings: OrdersSettings) -> OrdersSettings:
    """With the cache."""
    return orders_settings.model_copy(update={"cache_url": None})


@pytest.fixture
async def shop(
    settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner, description: Description
) -> AsyncIterator[Shop]:
    """Its reads go through the cache."""
    async with opened_shop(settings, issuer[0], owner) as opened:
        opened.client.event_hooks["response"].append(description.check)
        yield opened


def _path(order: dict[str, Any]) -> str:
    return f"/v1/orders/{order['order_id']}"


async def _kept(shop: Shop, path: str) -> httpx.Response:
    """The answer of `path`, which the cache has from now on."""
    await shop.get(path)
    response = await shop.get(path)
    assert response.headers["X-Cache"] == "hit"
    return response


async def test_the_second_read_is_the_first_ones_bytes_from_the_cache(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    for path in (_path(order), f"/v1/inventory/{product}"):
        miss, hit = await shop.get(path), await shop.get(path)
        assert (miss.headers["X-Cache"], hit.headers["X-Cache"]) == ("miss", "hit")
        assert (hit.content, hit.headers["ETag"]) == (miss.content, miss.headers["ETag"])
        assert "Age" not in miss.headers
        assert 0 <= int(hit.headers["Age"]) <= 30
        assert hit.headers["Cache-Control"] == miss.headers["Cache-Control"] == "private, no-store"


async def test_a_hit_asks_the_database_for_nothing(shop: Shop, owner: Owner) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    kept = [await _kept(shop, path) for path in (_path(order), f"/v1/inventory/{product}")]
    # What no command does: only who asks the database can see it.
    await owner.execute("UPDATE orders.inventory SET on_hand = 77")
    await owner.execute("ALTER TABLE orders.orders RENAME TO hidden")
    again = [await shop.get(path) for path in (_path(order), f"/v1/inventory/{product}")]
    assert [one.content for one in again] == [one.content for one in kept]


async def test_after_each_command_the_next_read_is_new(shop: Shop) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2))
    stock = f"/v1/inventory/{product}"
    steps: list[tuple[str, Callable[[], Awaitable[httpx.Response]]]] = [
        ("ship", lambda: shop.command(order, "ship", {"items": [{"line_no": 1, "quantity": 1}]})),
        ("ship", lambda: shop.command(order, "ship")),
        ("deliver", lambda: shop.command(order, "deliver")),
        ("return", lambda: shop.command(order, "return")),
    ]
    for name, step in steps:
        await _kept(shop, _path(order))
        before = (await _kept(shop, stock)).json()
        answered = await step()
        assert answered.status_code == 200, answered.text
        order = answered.json()
        seen = await shop.get(_path(order))
        assert (seen.headers["X-Cache"], seen.content) == ("miss", answered.content), name
        after = (await shop.get(stock)).json()
        assert (after["version"] > before["version"]) == (name != "deliver"), name
    await _kept(shop, stock)
    adjusted = await shop.adjust(product, 5)
    assert (await shop.get(stock)).content == adjusted.content
    await _kept(shop, stock)
    other = await shop.placed((product, 1))
    assert (await shop.get(stock)).json()["reserved"] == 1
    await _kept(shop, stock)
    await _kept(shop, _path(other))
    cancelled = await shop.command(other, "cancel", scope="orders:write")
    assert (await shop.get(_path(other))).content == cancelled.content
    assert (await shop.get(stock)).json()["reserved"] == 0


async def test_an_order_that_a_process_has_expired_is_read_as_cancelled(
    shop: Shop, as_role: AsRole, valkey_url: str
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1), payment_method="pm_card")
    await _kept(shop, _path(order))
    await _kept(shop, f"/v1/inventory/{product}")
    cache = caches.cache(valkey_url)
    assert cache is not None
    async with connected(as_role("orders_maintenance")) as database:
        due = clock.now() + shop.settings.pending_expires_after
        assert await expiry.expire_orders(database, AfterCommit(lambda: None, cache), due) == 1
    await cache.close()
    assert (await shop.get(_path(order))).json()["status"] == "cancelled"

    async def released() -> bool:
        return await shop.stock(product) == (100, 0)

    await eventually(released, "the stock that another process has released: L1 hears of it")


async def test_no_read_is_older_than_what_was_acknowledged_before_it_began(shop: Shop) -> None:
    product = await shop.product(stock=10_000)
    orders = [await shop.placed((product, 20)) for _ in range(4)]
    acknowledged = {_path(order): 1 for order in orders}
    stock = f"/v1/inventory/{product}"
    acknowledged[stock] = (await shop.get(stock)).json()["version"]
    writing = True
    outcomes = {"hit": 0, "miss": 0, "bypass": 0}

    async def write(order: dict[str, Any]) -> None:
        for _ in range(15):
            part = {"items": [{"line_no": 1, "quantity": 1}]}
            answered = await shop.command(order, "ship", part)
            assert answered.status_code == 200, answered.text
            order = answered.json()
            acknowledged[_path(order)] = order["version"]
            adjusted = (await shop.adjust(product, 1)).json()
            acknowledged[stock] = max(adjusted["version"], acknowledged[stock])

    async def read(paths: list[str]) -> None:
        while writing or sum(outcomes.values()) < 2_000:
            path = random.choice(paths)
            least = acknowledged[path]
            response = await shop.get(path)
            assert response.json()["version"] >= least, path
            outcomes[response.headers["X-Cache"]] += 1

    readers = [asyncio.create_task(read(list(acknowledged))) for _ in range(6)]
    await asyncio.gather(*(write(order) for order in orders))
    writing = False
    await asyncio.gather(*readers)
    assert sum(outcomes.values()) >= 2_000
    assert min(outcomes["hit"], outcomes["miss"]) > 50, outcomes


async def test_a_version_that_is_seen_already_is_304_from_the_cache_and_min_version_comes_first(shop: Shop) -> None:
    order = await shop.placed()
    await _kept(shop, _path(order))
    auth = shop.auth("orders:read")
    seen = await shop.client.get(_path(order), headers={**auth, "If-None-Match": '"1"'})
    assert (seen.status_code, seen.content, seen.headers["X-Cache"]) == (304, b"", "hit")
    early = await shop.client.get(_path(order), params={"min_version": 2}, headers={**auth, "If-None-Match": '"1"'})
    assert (early.status_code, early.json()["code"], early.json()["current_version"]) == (409, "version_not_reached", 1)
    await shop.command(order, "ship")
    late = await shop.client.get(_path(order), params={"min_version": 2}, headers={**auth, "If-None-Match": '"1"'})
    assert (late.status_code, late.json()["version"]) == (200, 2)


async def test_a_replay_tells_the_cache_what_its_first_may_not_have(shop: Shop, valkey_url: str) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    stock = f"/v1/inventory/{product}"
    before = [(await shop.get(path)).content for path in (_path(order), stock)]
    key = secrets.token_hex(8)
    first = await shop.command(order, "ship", key=key)
    # As if that one had died before it told the cache, so that what was before is there.
    server = Redis.from_url(valkey_url)
    for name, owned_by, body in (
        (Key(ORDER, order["order_id"]), str(shop.buyer), before[0]),
        (Key(INVENTORY, product), "", before[1]),
    ):
        await server.set(name.value, encode(name, Entry(owned_by, 1, body), clock.to_ms(clock.now())), px=30_000)
    await server.aclose()
    assert [(await shop.get(path)).content for path in (_path(order), stock)] == before
    again = await shop.command(order, "ship", key=key)
    assert (again.content, again.headers["Idempotency-Replayed"]) == (first.content, "true")
    assert (await shop.get(_path(order))).content == first.content
    assert (await shop.get(stock)).json()["version"] == 3


@pytest.mark.parametrize("suffix", ["", "/events"])
async def test_another_subject_is_told_what_is_told_of_no_order_and_staff_see_it(shop: Shop, suffix: str) -> None:
    order = await shop.placed()
    await _kept(shop, _path(order))
    stranger = shop.auth("orders:read", sub=uuid.uuid4())
    missing = ids.to_text(ids.new_order_key(uuid.uuid4(), clock.now()).order_id)
    for headers in ({}, {"If-None-Match": '"1"'}):
        foreign = await shop.client.get(_path(order) + suffix, headers={**stranger, **headers})
        none = await shop.client.get(f"/v1/orders/{missing}{suffix}", headers={**stranger, **headers})
        assert foreign.status_code == none.status_code == 404
        assert foreign.content.replace(order["order_id"].encode(), missing.encode()) == none.content
        varying = {"server-timing", "x-request-id"}
        assert {n: v for n, v in foreign.headers.items() if n not in varying} == {
            n: v for n, v in none.headers.items() if n not in varying
        }
    staff = await shop.client.get(
        _path(order) + suffix, headers=shop.auth("orders:read orders:read:any", sub=uuid.uuid4())
    )
    assert staff.status_code == 200
    assert staff.content == (await shop.get(_path(order) + suffix)).content
    # What staff have brought to the cache is the owner's all the same.
    await shop.command(order, "ship")
    await shop.client.get(_path(order), headers=shop.auth("orders:read orders:read:any", sub=uuid.uuid4()))
    assert (await shop.client.get(_path(order) + suffix, headers=stranger)).status_code == 404


async def test_stock_is_anybodys_and_a_product_that_is_not_known_is_404_each_time(shop: Shop) -> None:
    product = await shop.product()
    kept = await _kept(shop, f"/v1/inventory/{product}")
    other = await shop.client.get(f"/v1/inventory/{product}", headers=shop.auth("", sub=uuid.uuid4()))
    assert (other.content, other.headers["X-Cache"]) == (kept.content, "hit")
    unknown = ids.to_text(ids.new_id(clock.now()))
    assert [(await shop.get(f"/v1/inventory/{unknown}")).status_code for _ in range(2)] == [404, 404]


async def test_without_a_cache_every_read_is_the_databases(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner
) -> None:
    async with opened_shop(orders_settings, issuer[0], owner) as shop:
        order = await shop.placed()
        for _ in range(2):
            response = await shop.get(_path(order))
            assert (response.status_code, response.headers["X-Cache"]) == (200, "bypass")


async def test_a_dead_cache_costs_no_request_its_answer_and_what_it_missed_is_not_served_when_it_is_back(
    settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner, tmp_path: Path
) -> None:
    async with (
        serving(tmp_path) as server,
        opened_shop(settings.model_copy(update={"cache_url": server.valkey.url}), issuer[0], owner) as shop,
    ):
        product = await shop.product()
        order = await shop.placed((product, 1))
        await _kept(shop, _path(order))
        await server.kill()
        for _ in range(8):  # also once it is left alone
            response = await shop.get(_path(order))
            assert (response.status_code, response.headers["X-Cache"]) == (200, "bypass")
        shipped = await shop.command(order, "ship")
        assert shipped.status_code == 200
        assert (await shop.get(_path(order))).content == shipped.content
        assert await shop.stock(product) == (99, 0)
        assert (await shop.place((product, 1))).status_code == 201
        assert (await shop.client.get(_path(order), headers=shop.auth(sub=uuid.uuid4()))).status_code == 404
        await server.start()

        async def hit() -> bool:
            response = await shop.get(_path(order))
            assert response.content == shipped.content
            return response.headers["X-Cache"] == "hit"

        await eventually(hit, "a hit again")


async def test_what_a_command_could_not_tell_the_cache_the_relay_does(
    shop: Shop,
    orders_settings: OrdersSettings,
    issuer: tuple[Path, str],
    owner: Owner,
    as_role: AsRole,
    valkey_url: str,
) -> None:
    product = await shop.product()
    order = await shop.placed((product, 1))
    stock = f"/v1/inventory/{product}"
    before = [(await _kept(shop, path)).content for path in (_path(order), stock)]
    # A replica that is cut off from the cache.
    cut_off = orders_settings.model_copy(update={"cache_url": f"redis://127.0.0.1:{free_port_base()}/0"})
    async with opened_shop(cut_off, issuer[0], owner) as other:
        other.buyer = shop.buyer
        shipped = await other.command(order, "ship")
    assert shipped.status_code == 200
    assert [(await shop.get(path)).content for path in (_path(order), stock)] == before  # nobody has told it yet
    nowhere = f"127.0.0.1:{free_port_base()}"
    relay = RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url=nowhere)
    async with relaying(relay):

        async def new() -> bool:
            return (await shop.get(_path(order))).content == shipped.content and await shop.stock(product) == (99, 0)

        await eventually(new, "what the database has")
