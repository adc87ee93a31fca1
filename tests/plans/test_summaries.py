"""Plans of reading the order summaries: an index in order, until the page is full."""

import re
import uuid
from typing import TYPE_CHECKING

import pytest

from loadtests.explain import Explain
from services.common import clock
from services.common.db import SESSION
from services.orders.summaries import LIST_SUMMARIES, LIST_SUMMARIES_BY_STATUS

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

LAST = uuid.UUID(int=2**128 - 1)


@pytest.fixture
async def many(owner: "Connection") -> None:
    """10,000 summaries, a hundredth of them pending and those the oldest."""
    await owner.execute(
        """
        INSERT INTO orders.orders (order_id, created_at, shard, user_id, status, payment_status, currency, total_amount,
            captured_amount, refunded_amount, item_count, adjustments, version, updated_at)
        SELECT id, uuid_extract_timestamp(id), ((get_byte(uuid_send(id), 6) & 15) << 8) + get_byte(uuid_send(id), 7),
               id, CASE WHEN n > 9900 THEN 'pending' ELSE 'confirmed' END, 'on_account', 'USD', 1, 0, 0, 1, '[]', 1,
               now()
        FROM (SELECT n, uuidv7(make_interval(secs => -n)) AS id FROM generate_series(1, 10000) n) made
        """
    )
    await owner.execute("UPDATE orders.summary_refresh SET as_of = now(), since = now() - INTERVAL '1 day'")
    await owner.execute("REFRESH MATERIALIZED VIEW orders.order_summaries")
    await owner.execute("ANALYZE orders.order_summaries, orders.summary_refresh")


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("status", [None, "pending", "confirmed"])
async def test_a_page_of_summaries_reads_an_index_in_order_until_it_is_full(
    explain: Explain, status: str | None
) -> None:
    plan = await explain(
        LIST_SUMMARIES if status is None else LIST_SUMMARIES_BY_STATUS,
        status=status,
        payment_status=None,
        currency=None,
        from_id=uuid.UUID(int=0),
        before_id=LAST,
        walked=20,
        limit=20,
    )
    index = "ix_order_summaries_order_id" if status is None else "ix_order_summaries_status_order_id"
    assert index in plan.indexes("order_summaries")
    assert "order_summaries" not in plan.scanned()
    assert plan.rows_read() < 200


@pytest.mark.usefixtures("many")
async def test_a_refresh_finds_young_orders_open_ones_and_their_rows_by_indexes(owner: "Connection") -> None:
    definition = await owner.fetchval("SELECT definition FROM pg_matviews WHERE matviewname = 'order_summaries'")
    for name, value in SESSION.items():
        await owner.execute("SELECT set_config($1, $2, false)", name, value)
    plan = "\n".join(row[0] for row in await owner.fetch(f"EXPLAIN (COSTS OFF) {definition}"))
    assert not re.search(r"Seq Scan on order(s|_items|_events|_summaries)", plan)
    month = f"{clock.now():%Y_%m}"
    for index in (
        "orders_{}_created_at_order_id_idx",
        "orders_{}_created_at_idx",
        "order_items_{}_pkey",
        "order_events_{}_pkey",
    ):
        assert index.format(month) in plan
