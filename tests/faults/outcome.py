"""What is to be true after any fault: the database and Kafka have what was answered, once and in order."""

import asyncpg

from services.common import ids
from services.common.stream import dead_letter_topic
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from tests.faults import auditor
from tests.faults.ledger import (
    assert_each_key_made_one_whole_order,
    assert_invariants_hold,
    assert_stock_is_what_orders_hold,
)
from tests.faults.load import Load
from tests.faults.money import settled
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually


async def assert_nothing_lost(stack: Stack, load: Load) -> tuple[dict[str, int], int]:
    """The database has what was answered, and the topic what the database has, each order's events in order.

    Gives the newest version of each order, and how many messages came twice.
    """
    await settled(stack)
    owner = await asyncpg.connect(stack.addresses.postgres)
    try:
        await assert_each_key_made_one_whole_order(owner, load.buyers.asked, relayed=True)
        left = await owner.fetch("SELECT order_id FROM orders.orders WHERE status NOT IN ('pending', 'confirmed')")
        gone = {ids.to_text(row["order_id"]) for row in left}
        await assert_stock_is_what_orders_hold(owner, load.buyers.asked, gone=gone)
        rows = await owner.fetch("SELECT order_id, version, event_id FROM orders.order_events ORDER BY version")
    finally:
        await owner.close()
    await assert_invariants_hold(stack.addresses.postgres)
    stored = {(ids.to_text(row["order_id"]), row["version"]): ids.to_text(row["event_id"]) for row in rows}
    newest = {order_id: version for order_id, version in stored}  # noqa: C416 # the last of each stays
    assert {order_id for order_id, version in load.versions.items() if newest[order_id] < version} == set()
    read = await read_topic(stack.addresses.kafka, ORDERS_TOPIC)
    assert {place: {event_id for event_id, _ in found} for place, found in read.events.items()} == {
        place: {event_id} for place, event_id in stored.items()
    }
    for place, found in read.events.items():
        assert len(found) == 1, f"two messages for {place} differ"
    for order_id, version in newest.items():
        assert read.first_seen(order_id) == list(range(1, version + 1)), f"{order_id}: {read.versions[order_id]}"
    return newest, read.duplicates


async def assert_shown(load: Load, newest: dict[str, int]) -> str:
    """Every screen had runs without a gap, those of one order from its start, and has what it follows; figures."""

    async def up_to_date() -> bool:
        return all(had[-1] == newest[order_id] for screen in load.own for order_id, had in screen.had.items())

    await eventually(up_to_date, "the last version of every order on a screen", seconds=90, every=0.2)
    for screen in load.own + load.watching:
        screen.assert_contiguous()
    for screen in load.watching:
        assert [had[0] for had in screen.had.values()] == [1]
    return (
        f"{len(load.watching)} screens of one order, {len(load.own)} of all with {load.shown} events and"
        f" {sum(screen.connections for screen in load.own)} connections"
    )


async def assert_audited(stack: Stack, newest: dict[str, int]) -> str:
    """The auditor has applied every version once and in order, or it is a dead letter behind one that is; figures."""
    owner = await asyncpg.connect(stack.addresses.postgres)

    async def applied() -> dict[str, list[int]]:
        rows = await owner.fetch(
            "SELECT order_id, array_agg(version ORDER BY position) AS versions FROM audit.applied GROUP BY order_id"
        )
        return {row["order_id"]: row["versions"] for row in rows}

    def understood(order_id: str, version: int) -> int:
        """How many of its versions the auditor can apply."""
        return 1 if version >= 2 and auditor.is_poison(order_id, 2) else version

    wanted = {order_id: understood(order_id, version) for order_id, version in newest.items()}

    async def settled() -> bool:
        last = {order_id: versions[-1] for order_id, versions in (await applied()).items()}
        return last == wanted

    try:
        await eventually(settled, "the auditor has everything", seconds=60, every=0.5)
        found = await applied()
    finally:
        await owner.close()
    assert found == {order_id: list(range(1, version + 1)) for order_id, version in wanted.items()}
    dead = {order_id: version for order_id, version in newest.items() if wanted[order_id] < version}

    async def buried() -> bool:
        letters = await read_topic(stack.addresses.kafka, dead_letter_topic(ORDERS_TOPIC))
        return {key: max(versions) for key, versions in letters.versions.items()} == dead

    await eventually(buried, "every dead letter is there", seconds=60, every=0.5)
    letters = await read_topic(stack.addresses.kafka, dead_letter_topic(ORDERS_TOPIC))
    for order_id, version in dead.items():
        assert found[order_id] + letters.first_seen(order_id) == list(range(1, version + 1))
    return f"{sum(wanted.values())} applied by the auditor, {len(letters.events)} dead, {letters.duplicates} twice"
