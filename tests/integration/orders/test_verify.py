"""`orders verify`: green while orders are placed, and red by name for whatever is not as it should be."""

import asyncio
import os
import subprocess
import sys
from typing import TypeAlias

import asyncpg
import orjson
import pytest

from services.common import clock, ids
from services.orders.invariants import verify
from services.orders.rules import INVARIANTS
from services.orders.verdicts import SHOWN_MAX
from tests.conftest import with_database
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

# Past every trigger; statements are otherwise what a careless owner could run.
UNGUARDED = "SET session_replication_role = replica"
NEXT_MONTH = f"{clock.add_months(clock.month_of(clock.now()), 1):%Y_%m}"

# What is planted -> the invariants that notice. Some follow from each other: a wrong sum is also no fold.
CORRUPTIONS: dict[str, tuple[str, set[str]]] = {
    "a column of the order": ("UPDATE orders.orders SET tracking = 'elsewhere'", {"order_row_is_fold"}),
    "an order without a row": (
        "DELETE FROM orders.order_items; DELETE FROM orders.orders",
        {"order_row_is_fold", "items_are_fold", "versions_1_to_n", "stock_reserved"},
    ),
    "a column of a line": ("UPDATE orders.order_items SET name = 'Other'", {"items_are_fold"}),
    "a line too many": (
        "INSERT INTO orders.order_items SELECT order_id, created_at, shard, 9, product_id, name, 1, 1, 1, 0, 0"
        " FROM orders.order_items",
        {"items_are_fold", "total_amount", "item_count", "stock_reserved"},
    ),
    "a line's total": (
        "ALTER TABLE orders.order_items DROP CONSTRAINT ck_order_items_line_total;"
        " UPDATE orders.order_items SET line_total = line_total + 1",
        {"line_total", "items_are_fold", "total_amount"},
    ),
    "an order's total": ("UPDATE orders.orders SET total_amount = 1", {"total_amount", "order_row_is_fold"}),
    "a fee that nobody charged": (
        """UPDATE orders.orders SET adjustments = '[{"kind": "fee", "line_no": null, "label": "x", "amount": 1}]'""",
        {"total_amount", "order_row_is_fold"},
    ),
    "units that never came back": (
        "UPDATE orders.order_items SET shipped_quantity = 1, returned_quantity = 1",
        {"items_are_fold", "stock_reserved"},
    ),
    "a count of lines": ("UPDATE orders.orders SET item_count = 5", {"item_count", "order_row_is_fold"}),
    "a lost event": (
        "DELETE FROM orders.order_events",
        {"versions_1_to_n", "order_row_is_fold", "outbox_row_has_its_event"},
    ),
    "a gap": (
        "UPDATE orders.order_events SET version = 2; DELETE FROM orders.outbox",
        {"versions_1_to_n", "order_row_is_fold"},
    ),
    "delivered before it was shipped": (
        """
        INSERT INTO orders.order_events SELECT order_id, created_at, shard, 2, event_id, 'order.delivered',
            jsonb_build_object('change', '{}'::jsonb, 'after', jsonb_set(data -> 'after', '{status}', '"delivered"')),
            actor, traceparent, occurred_at FROM orders.order_events;
        UPDATE orders.orders SET status = 'delivered', version = 2
        """,
        {"legal_transitions"},
    ),
    "sales that nobody made": (
        "INSERT INTO orders.sales_daily VALUES ('2026-01-01', 'USD', 1, 1, 1, 0, 0, 0, 0, 0)",
        {"sales_daily_is_sum"},
    ),
    "a product that nobody ordered": (
        "INSERT INTO orders.sales_daily_product VALUES ('2026-01-01', 'USD', gen_random_uuid(), 1, 1)",
        {"sales_daily_product_is_sum"},
    ),
    "a status of no order": (
        "INSERT INTO orders.orders_by_status VALUES ('2026-01-01', 'USD', 'pending', 1, 1)",
        {"orders_by_status_is_sum"},
    ),
    "money from nowhere": (
        "UPDATE orders.orders SET captured_amount = 1",
        {"payment_status_is_true", "order_row_is_fold"},
    ),
    "more captured than there is to pay": (
        "ALTER TABLE orders.orders DROP CONSTRAINT ck_orders_captured_amount;"
        " UPDATE orders.orders SET captured_amount = total_amount + 1, payment_status = 'captured'",
        {"amounts_within_total", "payment_status_is_true", "order_row_is_fold"},
    ),
    "confirmed and not paid": (
        "UPDATE orders.orders SET payment_status = 'unpaid', payment_method = 'pm_card'",
        {"payment_status_is_true", "order_row_is_fold"},
    ),
    "cancelled for a payment that had not failed": (
        "UPDATE orders.orders SET status = 'cancelled', cancel_reason = 'payment_failed', payment_method = 'pm_card',"
        " payment_status = 'authorized'",
        {"payment_status_is_true", "order_row_is_fold", "stock_reserved"},
    ),
    "a payment that nobody has told of": (
        """
        INSERT INTO orders.order_events SELECT order_id, created_at, shard, 2, event_id, 'order.payment_authorized',
            jsonb_build_object('change', '{"amount": 1}'::jsonb,
                'after', jsonb_set(data -> 'after', '{payment_status}', '"authorized"')),
            actor, traceparent, occurred_at FROM orders.order_events;
        UPDATE orders.orders SET payment_status = 'authorized', version = 2
        """,
        {"legal_transitions", "payment_status_is_true"},
    ),
    "placed as delivered": (
        """
        UPDATE orders.order_events SET data = jsonb_set(jsonb_set(data, '{after,status}', '"delivered"'),
            '{change,status}', '"delivered"');
        UPDATE orders.orders SET status = 'delivered'
        """,
        {"legal_transitions"},
    ),
    "stock reserved for nobody": ("UPDATE orders.inventory SET reserved = reserved + 1", {"stock_reserved"}),
    "stock from nowhere": ("UPDATE orders.inventory SET on_hand = on_hand + 1", {"stock_on_hand"}),
    "a copy newer than the product": ("UPDATE orders.products SET version = 2", {"product_copy"}),
    "a copy that differs": ("UPDATE orders.products SET price = price + 1", {"product_copy"}),
    "a copy of no product": ("DELETE FROM catalog.products", {"product_copy"}),
    "an outbox row of no event": ("UPDATE orders.outbox SET version = 7", {"outbox_row_has_its_event"}),
    "a parked row of no event": (
        """
        INSERT INTO relay.parked (outbox, aggregate_id, position, version, reason, content, parked_at)
            SELECT 'orders', order_id, position, 7, 'x', to_jsonb(o) || '{"version": 7}', now() FROM orders.outbox o;
        DELETE FROM orders.outbox
        """,
        {"outbox_row_has_its_event"},
    ),
    "an outbox row of another time": (
        "UPDATE orders.outbox SET created_at = created_at + INTERVAL '1 ms'",
        {"outbox_row_has_its_event"},
    ),
    "an outbox row in another slice": (
        "ALTER TABLE orders.outbox DROP CONSTRAINT ck_outbox_slice; UPDATE orders.outbox SET slice = (slice + 1) % 16",
        {"outbox_row_has_its_event"},
    ),
    "a missing month": (f"DROP TABLE orders.order_events_{NEXT_MONTH}", {"partitions_present_and_alike"}),
    "a month that can be emptied": (
        f"ALTER TABLE orders.order_events_{NEXT_MONTH} DISABLE TRIGGER append_only_truncate",
        {"partitions_present_and_alike"},
    ),
    "events that can be changed": (
        "ALTER TABLE ONLY orders.order_events DISABLE TRIGGER append_only",
        {"partitions_present_and_alike"},
    ),
    "a grant past the parent": (
        f"GRANT UPDATE ON orders.order_events_{NEXT_MONTH} TO orders_api",
        {"partitions_present_and_alike"},
    ),
    "an index of one month": (
        f"CREATE INDEX ON orders.orders_{NEXT_MONTH} (tracking)",
        {"partitions_present_and_alike"},
    ),
    "a check of one month": (
        f"ALTER TABLE orders.orders_{NEXT_MONTH} ADD CHECK (version < 9)",
        {"partitions_present_and_alike"},
    ),
    "lines of no order": (
        f"ALTER TABLE orders.order_items_{NEXT_MONTH} DROP CONSTRAINT fk_order_items_orders",
        {"partitions_present_and_alike"},
    ),
    "a month under a wrong name": (
        f"ALTER TABLE orders.orders_{NEXT_MONTH} RENAME TO orders_2031_01",
        {"partitions_present_and_alike"},
    ),
}


def test_every_invariant_has_a_corruption_that_it_notices() -> None:
    assert set().union(*(noticed for _, noticed in CORRUPTIONS.values())) == {i.name for i in INVARIANTS}


@pytest.mark.parametrize("planted", CORRUPTIONS)
async def test_what_is_planted_is_found_by_name(planted: str, shop: Shop, owner: Owner, database_url: str) -> None:
    order = await shop.placed((await shop.product(), 2))
    assert (await verify(database_url)).violated == []
    sql, noticed = CORRUPTIONS[planted]
    await owner.execute(f"{UNGUARDED}; {sql}")
    report = await verify(database_url)
    assert set(report.violated) == noticed
    repairs = {invariant.name: invariant.repair for invariant in INVARIANTS}
    for verdict in report.verdicts:
        assert all(message.endswith(repairs[verdict.name]) for message in verdict.messages)
        if (
            verdict.violations
            and not verdict.name.endswith("_is_sum")
            and verdict.name
            not in (
                "stock_reserved",
                "stock_on_hand",
                "product_copy",
                "partitions_present_and_alike",
            )
        ):
            assert {violation.id for violation in verdict.violations} == {order["order_id"]}


async def test_a_copy_may_be_older_than_the_product(shop: Shop, owner: Owner, database_url: str) -> None:
    await shop.product()
    await owner.execute("UPDATE catalog.products SET version = 2, price = price + 1, active = FALSE")
    assert (await verify(database_url)).violated == []


async def test_it_says_how_many_rows_it_has_seen(shop: Shop, database_url: str) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2), (product, 1))
    await shop.command(order, "ship")
    rows = {verdict.name: verdict.rows for verdict in (await verify(database_url)).verdicts}
    assert rows["order_row_is_fold"] == rows["total_amount"] == 1
    assert rows["items_are_fold"] == rows["line_total"] == 2
    assert rows["versions_1_to_n"] == rows["legal_transitions"] == 2
    assert rows["stock_reserved"] == 1
    assert rows["outbox_row_has_its_event"] == 2


async def test_twenty_violations_are_enough(shop: Shop, owner: Owner, database_url: str) -> None:
    product = await shop.product()
    for _ in range(SHOWN_MAX + 5):
        await shop.placed((product, 1))
    await owner.execute("UPDATE orders.orders SET tracking = 'elsewhere'")
    verdict = (await verify(database_url)).verdicts[0]
    assert len(verdict.violations) == SHOWN_MAX


async def test_it_is_green_while_orders_are_placed_shipped_and_cancelled(shop: Shop, database_url: str) -> None:
    products = [await shop.product(stock=10_000) for _ in range(3)]
    over = asyncio.Event()

    async def buy(number: int) -> int:
        bought = 0
        while not over.is_set():
            order = await shop.placed(*((product, 1) for product in products))
            response = await shop.command(order, ("ship", "cancel")[(bought + number) % 2])
            assert response.status_code == 200, response.text
            bought += 1
        return bought

    async with asyncio.TaskGroup() as tasks:
        buyers = [tasks.create_task(buy(number)) for number in range(4)]
        reports = [await verify(database_url) for _ in range(15)]
        over.set()
    assert min(buyer.result() for buyer in buyers) > 3
    assert [message for report in reports for verdict in report.verdicts for message in verdict.messages] == []
    assert reports[-1].verdicts[0].rows > reports[0].verdicts[0].rows


async def test_two_processes_find_what_one_finds_and_tell_how_far_they_are(
    shop: Shop, owner: Owner, database_url: str
) -> None:
    order = await shop.placed()
    await owner.execute("UPDATE orders.orders SET tracking = 'elsewhere'")
    told: list[tuple[str, int, int]] = []
    report = await verify(database_url, jobs=2, progress=lambda *more: told.append(more))
    assert report.violated == ["order_row_is_fold"]
    assert report.verdicts[0].violations[0].id == order["order_id"]
    assert max(done for what, done, _ in told if what.endswith("orders/s")) == 1
    assert {what for what, *_ in told} >= {"sums of days", "tables"}
    assert all(done <= total for _, done, total in told)


COMMAND = "import typer; from services.cli.verify import verify; typer.run(verify)"


async def run_command(url: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    environment = {**os.environ, "ORDERS_POSTGRES_URL": url}
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", COMMAND, "--jobs", "1", *arguments],
        env=environment,
        capture_output=True,
        check=False,
    )


async def test_the_exit_code_tells_green_red_and_not_run(shop: Shop, owner: Owner, database_url: str) -> None:
    await shop.placed()
    green = await run_command(database_url, "--json")
    assert green.returncode == 0, green.stderr
    assert orjson.loads(green.stdout)["ok"] is True
    await owner.execute("UPDATE orders.inventory SET on_hand = on_hand + 1")
    red = await run_command(database_url)
    assert red.returncode == 1, red.stderr
    assert b"Run `orders rebuild`" in red.stdout
    unreachable = await run_command("postgresql://nobody@127.0.0.1:1/orders", "--json")
    assert (unreachable.returncode, unreachable.stdout) == (2, b"")
    assert b"No database answers" in unreachable.stderr
    empty = await run_command(with_database(database_url, "postgres"))
    assert empty.returncode == 2
    assert b"orders.months" in empty.stderr


async def test_a_product_is_named_by_its_ulid(shop: Shop, owner: Owner, database_url: str) -> None:
    product = await shop.product()
    await owner.execute("UPDATE orders.inventory SET on_hand = 3 WHERE product_id = $1", ids.from_text(product))
    verdict = next(v for v in (await verify(database_url)).verdicts if v.violations)
    assert [violation.id for violation in verdict.violations] == [product]
    assert "on_hand is 3" in verdict.messages[0]
