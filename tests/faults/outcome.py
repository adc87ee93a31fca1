"""What is to be true after any fault: the database and Kafka have what was answered, once and in order."""

import asyncpg

from services.common import ids
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from tests.faults.ledger import (
    assert_each_key_made_one_whole_order,
    assert_invariants_hold,
    assert_stock_is_what_orders_hold,
)
from tests.faults.load import Load
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually


async def assert_nothing_lost(stack: Stack, load: Load) -> int:
    """The database has what was answered, and the topic what the database has; gives how many messages came twice."""
    owner = await asyncpg.connect(stack.addresses.postgres)

    async def empty() -> bool:
        return not await owner.fetchval("SELECT count(*) FROM orders.outbox")

    try:
        await eventually(empty, "the outbox is empty", seconds=60, every=0.1)
        await assert_each_key_made_one_whole_order(owner, load.buyers.asked, relayed=True)
        await assert_stock_is_what_orders_hold(owner, load.buyers.asked, gone=load.gone)
        rows = await owner.fetch("SELECT order_id, version, event_id FROM orders.order_events")
    finally:
        await owner.close()
    await assert_invariants_hold(stack.addresses.postgres)
    stored = {(ids.to_text(row["order_id"]), row["version"]): ids.to_text(row["event_id"]) for row in rows}
    read = await read_topic(stack.addresses.kafka, ORDERS_TOPIC)
    assert {place: {event_id for event_id, _ in found} for place, found in read.events.items()} == {
        place: {event_id} for place, event_id in stored.items()
    }
    for place, found in read.events.items():
        assert len(found) == 1, f"two messages for {place} differ"
    for order_id, version in load.versions.items():
        assert read.first_seen(order_id) == list(range(1, version + 1)), f"{order_id}: {read.versions[order_id]}"
    return read.duplicates
