"""How relays share the slices of an outbox, seen on their leases alone."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg
import pytest

from services.common.db import Database
from services.common.outbox import Alarm, Ring
from services.relay.leases import Lease, Leases
from services.relay.outboxes import CATALOG, ORDERS
from tests.conftest import AsRole
from tests.integration.relay.conftest import connected, metric

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LEASE_SECONDS = 60.0  # nothing runs out while a test is slow


@dataclass
class Member:
    """A relay that beats when it is told to."""

    leases: Leases
    lease: Lease


@dataclass
class Relays:
    """They share the outbox of orders."""

    database: Database
    valkey_url: str

    def join(self, name: str, *, lease_seconds: float = LEASE_SECONDS) -> Member:
        leases = Leases(self.database, name, [ORDERS, CATALOG], lease_seconds=lease_seconds, beat_seconds=1.0)
        lease = leases.add(ORDERS.name, Alarm(self.valkey_url, "orders"))
        leases.add(CATALOG.name, Alarm(self.valkey_url, "catalog"))  # which it does not want
        leases.want(lease, True)
        return Member(leases, lease)


@pytest.fixture
async def relays(as_role: AsRole, valkey_url: str) -> AsyncIterator[Relays]:
    """Relays as the role of the process."""
    async with connected(as_role("outbox_relay")) as database:
        yield Relays(database, valkey_url)


async def _settled(members: list[Member]) -> list[list[int]]:
    """The slices of each, once nothing changes hands any more."""
    for _ in range(10):
        if all([await member.leases.beat() for member in members]):
            return [member.lease.slices() for member in members]
    raise AssertionError([member.lease.slices() for member in members])


async def test_shares_differ_by_one_at_most_and_together_are_all_slices(relays: Relays) -> None:
    members = []
    for count in range(1, 18):
        members.append(relays.join(f"relay-{count:02}"))
        shared = await _settled(members)
        assert sorted(number for slices in shared for number in slices) == list(range(16))
        sizes = [len(slices) for slices in shared]
        assert max(sizes) - min(sizes) <= 1, sizes


async def test_a_newcomer_gets_a_slice_only_when_nothing_of_it_is_under_way(relays: Relays) -> None:
    first, second = relays.join("first"), relays.join("second")
    assert await first.leases.beat()
    assert not await second.leases.beat()
    assert second.lease.slices() == []
    first.lease.under_way = set(range(8, 12))
    assert not await first.leases.beat()  # it hears of the second
    assert first.lease.slices() == list(range(8)), "it begins nothing more of what it will give up"
    for _ in range(3):
        await first.leases.beat()
        await second.leases.beat()
    assert second.lease.slices() == [12, 13, 14, 15]
    first.lease.under_way = set()
    assert await _settled([first, second]) == [list(range(8)), list(range(8, 16))]


async def test_what_one_does_not_want_any_more_is_another_s_at_once(relays: Relays) -> None:
    first, second = relays.join("first"), relays.join("second")
    await _settled([first, second])
    first.leases.want(first.lease, False)
    assert first.lease.slices() == [], "and it publishes nothing more itself"
    await first.leases.beat()
    assert await second.leases.beat()
    assert second.lease.slices() == list(range(16))


async def test_a_lease_that_has_run_out_is_of_no_use_to_its_relay_and_free_to_others(relays: Relays) -> None:
    frozen, other = relays.join("frozen", lease_seconds=0.2), relays.join("other")
    assert await frozen.leases.beat()
    assert len(frozen.lease.slices()) == 16
    await asyncio.sleep(0.25)  # nobody beats: it is time alone that ends a lease
    assert frozen.lease.slices() == []
    assert await other.leases.beat()
    assert other.lease.slices() == list(range(16))
    await frozen.leases.beat()
    assert frozen.lease.slices() == [], "it comes back, and the slices are another's"


async def test_a_renewal_rings_whose_queue_has_rows_in_its_slices(relays: Relays, owner: Owner) -> None:
    first, second = relays.join("first"), relays.join("second")
    await _settled([first, second])
    for member in (first, second):
        await member.lease.alarm.wait(0)
    await owner.execute(
        "INSERT INTO orders.outbox (shard, slice, order_id, created_at, version) VALUES ($1, $1, uuidv7(), now(), 1)",
        second.lease.slices()[0],
    )
    for member in (first, second):
        await member.leases.renew()
    assert [await member.lease.alarm.wait(0) for member in (first, second)] == [None, Ring.FOUND]


async def test_a_queue_that_cannot_be_looked_at_costs_nobody_a_lease(relays: Relays, owner: Owner) -> None:
    member = relays.join("first")
    await _settled([member])
    await owner.execute("REVOKE SELECT ON catalog.outbox FROM outbox_relay")
    failed = metric("relay_beats_total", result="failed")
    await member.leases.renew()
    assert metric("relay_beats_total", result="failed") == failed + 1
    assert await member.leases.wait(0.5), "and it is tried again much sooner than the next beat"
    renewed = metric("relay_beats_total", result="renewed")
    await member.leases.renew()
    assert metric("relay_beats_total", result="renewed") == renewed + 1
    assert member.lease.slices() == list(range(16))


async def test_two_that_find_the_same_slices_free_do_not_both_take_them(relays: Relays) -> None:
    first, second = relays.join("first"), relays.join("second")
    await asyncio.gather(first.leases.beat(), second.leases.beat())
    assert not set(first.lease.slices()) & set(second.lease.slices())
