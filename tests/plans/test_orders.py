"""Plans and round trips of the statements behind requests: one partition by id, the right index, no sort, no scan."""

import secrets
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from loadtests.explain import Explain
from services.common import clock, ids
from services.contracts.orders import OrderStatus
from services.orders import queries, repository
from services.orders.advance import ADVANCE
from services.orders.place import PLACE
from services.orders.repository import ALL_EVENTS
from services.orders.settings import OrdersSettings
from tests.plans.proxy import counting_proxy
from tests.shop import Shop, opened_shop

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

MONTHS = 120
NAMES_AN_ORDER = {"_pkey", "_created_at_order_id_idx"}  # either finds the one row; the planner takes the smaller
DEAR = {"Sort", "Incremental Sort", "Seq Scan"}
USER = uuid.UUID("6f1d3a2e-0000-4000-8000-000000000001")


@pytest.fixture
async def ten_years(owner: "Connection") -> datetime:
    """120 months of partitions, and enough products that an index is worth having; gives the first month."""
    first = clock.add_months(clock.month_of(clock.now()), 4 - MONTHS)
    await owner.execute(
        "SELECT orders.create_month(($1::timestamptz + make_interval(months => m))::date)"
        " FROM generate_series(0, $2) m",
        first,
        MONTHS - 1,
    )
    await owner.execute(
        "INSERT INTO orders.products (product_id, name, price, currency, active, version)"
        " SELECT uuidv7(), 'Thing', 100, 'USD', TRUE, 1 FROM generate_series(1, 3000)"
    )
    await owner.execute(
        "INSERT INTO orders.inventory (product_id, on_hand, reserved, version)"
        " SELECT product_id, 1000000, 0, 1 FROM orders.products"
    )
    await owner.execute("ANALYZE orders.products, orders.inventory")
    return first


async def plant(
    owner: "Connection",
    at: datetime,
    *,
    user_id: uuid.UUID = USER,
    count: int = 1,
    statuses: Sequence[str] = ("confirmed",),
) -> list[ids.OrderKey]:
    """Orders of `user_id` made at `at`, each with its one event."""
    keys = [ids.new_order_key(user_id, at) for _ in range(count)]
    await owner.copy_records_to_table(
        "orders",
        schema_name="orders",
        columns=[
            *("order_id", "created_at", "shard", "user_id", "status", "payment_status", "currency", "total_amount"),
            *("captured_amount", "refunded_amount", "item_count", "adjustments", "version", "updated_at"),
        ],
        records=[
            (*key, user_id, status, "on_account", "USD", 100, 0, 0, 1, "[]", 1, at)
            for key, status in zip(keys, cycle(statuses), strict=False)
        ],
    )
    await owner.copy_records_to_table(
        "order_events",
        schema_name="orders",
        columns=[
            *("order_id", "created_at", "shard", "version", "event_id", "type", "data", "actor", "occurred_at"),
        ],
        records=[(*key, 1, ids.new_id(at), "order.placed", "{}", "process:test", at) for key in keys],
    )
    return keys


@pytest.fixture
async def history(owner: "Connection", ten_years: datetime) -> list[ids.OrderKey]:
    """An order of USER in each of the last 30 months and one in the second, among those of others; newest first.

    Enough rows, and known to the planner, that an index is chosen for what it is good for.
    """
    this_month = clock.month_of(clock.now())
    months = [clock.add_months(this_month, -age) for age in range(30)] + [clock.add_months(ten_years, 1)]
    keys = []
    for month in months:
        for other in range(20):
            await plant(
                owner, month + timedelta(minutes=other), user_id=uuid.uuid4(), count=50, statuses=list(OrderStatus)
            )
        keys += await plant(owner, month + timedelta(hours=1))
    await owner.execute("ANALYZE orders.orders, orders.order_events")
    return keys


async def placement(owner: "Connection", *, lines: int = 3, key: str = "k") -> dict[str, Any]:
    """Values for PLACE."""
    now = clock.now()
    order = ids.new_order_key(USER, now)
    products = [row[0] for row in await owner.fetch("SELECT product_id FROM orders.products LIMIT $1", lines)]
    return {
        "shard": order.shard,
        "slice": order.shard % 16,
        "order_id": order.order_id,
        "order_text": ids.to_text(order.order_id),
        "created_at": now,
        "created_text": clock.to_text(now),
        "event_id": ids.new_id(now),
        "user_id": USER,
        "user_text": str(USER),
        "subject": "s",
        "key": key,
        "request_hash": b"h",
        "currency": "USD",
        "product_ids": products,
        "product_texts": [ids.to_text(product) for product in products],
        "quantities": [1] * lines,
        "seen_prices": [None] * lines,
        "agreed": False,
        "adjustments": "[]",
        "adjusted_amount": 0,
        "amount_max": 2**53 - 1,
        "status": "confirmed",
        "payment_status": "on_account",
        "payment_method": None,
        "shipping_address_id": None,
        "expires_at": None,
        "expires_text": None,
        "actor": "process:test",
        "traceparent": None,
    }


@pytest.mark.usefixtures("ten_years")
async def test_placing_reads_by_primary_key_and_writes_each_table(explain: Explain, owner: "Connection") -> None:
    plan = await explain(PLACE, **await placement(owner))
    assert plan.scanned() == set()
    assert plan.indexes("products") == {"pk_products"}
    assert plan.indexes("inventory") == {"pk_inventory"}
    assert plan.rows_read() == 3 * 3  # each product once in products, and twice in inventory: to lock, to update
    written = {node["Relation Name"] for node in plan.nodes() if node["Node Type"] == "ModifyTable"}
    assert written == {
        "orders",
        "order_items",
        "order_events",
        "outbox",
        "idempotency_keys",
        "inventory",
        "invalidations",
    }


@pytest.mark.parametrize("age", [0, -1])
async def test_reading_an_order_touches_one_partition_by_primary_key(
    explain: Explain, history: list[ids.OrderKey], age: int
) -> None:
    key = history[age]
    plan = await explain(
        repository.GET_EVENTS, **key._asdict(), user_id=USER, any_owner=False, after_version=0, limit=ALL_EVENTS
    )
    month = f"{key.created_at:%Y_%m}"
    assert plan.partitions("orders") == {f"orders_{month}"}
    assert plan.partitions("order_events") == {f"order_events_{month}"}
    assert plan.indexes("order") <= NAMES_AN_ORDER
    assert not plan.node_types() & DEAR
    assert plan.rows_read() == 2


@pytest.mark.parametrize("status", [None, "confirmed"])
async def test_a_list_reads_an_index_in_order_over_at_most_24_months(
    explain: Explain, history: list[ids.OrderKey], status: str | None
) -> None:
    newest = history[0].created_at
    plan = await explain(
        queries.LIST_ORDERS if status is None else queries.LIST_ORDERS_BY_STATUS,
        user_id=USER,
        status=status,
        from_at=clock.add_months(clock.month_of(newest), 1 - queries.MONTHS_PER_PAGE_MAX),
        before_at=newest + timedelta(days=1),
        before_id=uuid.UUID(int=0),
        limit=100,
    )
    months = {f"{key.created_at:%Y_%m}" for key in history[: queries.MONTHS_PER_PAGE_MAX]}
    assert plan.partitions("orders") == {f"orders_{month}" for month in months}
    assert plan.partitions("order_events") == {f"order_events_{month}" for month in months}
    index = "_user_id_created_at_order_id_idx" if status is None else "_user_id_status_created_at_order_id_idx"
    assert plan.indexes("orders_2") == {index}
    assert plan.indexes("order_events") == {"_pkey"}
    assert not plan.node_types() & DEAR
    assert plan.rows_read() == 2 * queries.MONTHS_PER_PAGE_MAX


async def test_a_page_stops_reading_when_it_is_full(explain: Explain, history: list[ids.OrderKey]) -> None:
    newest = history[0].created_at
    plan = await explain(
        queries.LIST_ORDERS,
        user_id=USER,
        from_at=clock.add_months(clock.month_of(newest), 1 - queries.MONTHS_PER_PAGE_MAX),
        before_at=newest + timedelta(days=1),
        before_id=uuid.UUID(int=0),
        limit=5,
    )
    assert len(plan.partitions("orders")) == 5
    assert plan.rows_read() == 10


async def test_commands_lock_and_change_one_partition_by_primary_key(
    explain: Explain, owner: "Connection", history: list[ids.OrderKey]
) -> None:
    key = history[-1]
    lock = await explain(
        repository.LOCK,
        **key._asdict(),
        user_id=USER,
        any_owner=False,
        subject="s",
        key="k",
        request_hash=b"h",
        version=2,
        occurred_at=clock.now(),
    )
    advance = await explain(
        ADVANCE,
        **key._asdict(),
        slice=key.shard % 16,
        status="shipped",
        payment_status="on_account",
        total_amount=100,
        captured_amount=0,
        refunded_amount=0,
        tracking=None,
        cancel_reason=None,
        version=2,
        occurred_at=clock.now(),
        line_nos=[1],
        shipped_quantities=[1],
        returned_quantities=[0],
        product_ids=[await owner.fetchval("SELECT product_id FROM orders.products LIMIT 1")],
        on_hand_deltas=[0],
        reserved_deltas=[0],
        event_id=ids.new_id(clock.now()),
        type="order.shipped",
        data="{}",
        actor="process:test",
        traceparent=None,
    )
    by_process = await explain(repository.LOCK_ORDER, **key._asdict())
    for plan in (lock, by_process, advance):
        assert plan.scanned() == set()
        assert plan.partitions("orders") == {f"orders_{key.created_at:%Y_%m}"}
        assert plan.indexes("orders_2") <= NAMES_AN_ORDER
    assert advance.indexes("inventory") == {"pk_inventory"}
    assert advance.rows_read() == 3  # the order, and the product's stock to lock and to update


async def test_what_has_expired_is_found_among_those_that_wait_and_nowhere_else(
    explain: Explain, owner: "Connection", history: list[ids.OrderKey]
) -> None:
    # Of each month a few thousand orders; pending ones wait for payment, and of two months some wait too long.
    now = clock.now()
    await owner.execute(
        "UPDATE orders.orders SET expires_at = $1::timestamptz + INTERVAL '10 min' WHERE status = 'pending'", now
    )
    for key, late in ((history[0], 2), (history[-1], 1)):
        await owner.execute(
            "UPDATE orders.orders SET status = 'pending', expires_at = $2::timestamptz - make_interval(mins => $3)"
            " WHERE order_id = $1",
            *(key.order_id, now, late),
        )
    await owner.execute("ANALYZE orders.orders")
    plan = await explain(repository.GET_EXPIRED, now=now, limit=500)
    assert plan.indexes("orders_2") == {"_expires_at_idx"}
    assert not plan.node_types() & DEAR, "each index gives its own in their order"
    assert plan.rows_read() == 2
    lock = await explain(repository.LOCK_EXPIRED, **history[0]._asdict(), now=now)
    assert lock.partitions("orders") == {f"orders_{history[0].created_at:%Y_%m}"}
    assert lock.indexes("orders_2") <= {*NAMES_AN_ORDER, "_expires_at_idx"}
    assert lock.rows_read() <= 1


@pytest.mark.usefixtures("ten_years")
@pytest.mark.parametrize("stocked", [True, False])
async def test_adjusting_stock_reads_by_primary_key_and_its_replay_by_the_key(
    explain: Explain, owner: "Connection", stocked: bool
) -> None:
    product = await owner.fetchval("SELECT product_id FROM orders.products LIMIT 1")
    await owner.execute(
        "INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved, subject,"
        " key, request_hash, created_at)"
        " SELECT $1, n + 1, 1, 'r', 'process:test', n, 0, 's', 'k' || n, 'h', now() FROM generate_series(1, 3000) n",
        product,
    )
    if not stocked:
        await owner.execute("DELETE FROM orders.inventory WHERE product_id = $1", product)
    else:
        await owner.execute("UPDATE orders.inventory SET version = 3001 WHERE product_id = $1", product)
    await owner.execute("ANALYZE orders.inventory_movements")
    by_key = {"product_id": product, "subject": "s"}
    plan = await explain(
        repository.ADJUST,
        shard=7,
        slice=7,
        **by_key,
        key="new",
        delta=5,
        reason="r",
        actor="process:test",
        request_hash=b"h",
        created_at=clock.now(),
        amount_max=2**53 - 1,
    )
    assert plan.scanned() == set()
    assert plan.indexes("products") == {"pk_products"}
    assert plan.indexes("inventory") == {"pk_inventory"}
    assert plan.rows_read() == (3 if stocked else 1)  # the product, and its stock twice: to lock, to update
    replay = await explain(repository.GET_MOVEMENT, **by_key, key="k7")
    assert replay.indexes("inventory_movements") == {"uq_inventory_movements_product_id_subject_key"}
    assert not replay.node_types() & DEAR
    assert replay.rows_read() == 2


async def test_a_buyer_whose_only_order_is_nine_years_old_finds_it_in_bounded_steps(
    ten_years: datetime, shop: Shop, owner: "Connection"
) -> None:
    at = ten_years + timedelta(days=40)
    order = await shop.placed()
    # The same order nine years earlier: its rows under an id of that time.
    key = ids.new_order_key(shop.buyer, at)
    old = ids.order_key(ids.from_text(order["order_id"]))
    rest = {
        "orders": "user_id, status, payment_status, currency, total_amount, captured_amount, refunded_amount,"
        " item_count, adjustments, version, updated_at",
        "order_events": "version, event_id, type, data, actor, occurred_at",
    }
    for table, columns in rest.items():
        await owner.execute(
            f"INSERT INTO orders.{table} (order_id, created_at, shard, {columns})"  # noqa: S608 # names of our own
            f" SELECT $1, $2, $3, {columns} FROM orders.{table} WHERE order_id = $4",
            *(*key, old.order_id),
        )
    pages, cursor, found = 0, None, []
    while pages == 0 or cursor:
        page = (await shop.get("/v1/orders", **({"cursor": cursor} if cursor else {}))).json()
        pages, cursor = pages + 1, page["next_cursor"]
        found += page["data"]
    assert len(found) == 2
    assert 5 <= pages <= 7  # 24 months each; the first pages are short, and say that there is more


async def test_a_request_costs_the_round_trips_it_should(
    orders_settings: OrdersSettings,
    issuer: tuple[Path, str],
    owner: "Connection",
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("p")
    async with (
        counting_proxy(orders_settings.postgres_url, directory) as proxy,
        opened_shop(orders_settings.model_copy(update={"postgres_url": proxy.url}), issuer[0], owner) as shop,
    ):
        product = await shop.product()
        requests: dict[str, Callable[[], Awaitable[httpx.Response]]] = {
            "place": lambda: shop.place((product, 1), key=secrets.token_hex(8)),
            "replay": lambda: shop.place((product, 1), key="again"),
            "get": lambda: shop.get(f"/v1/orders/{order['order_id']}"),
            "events": lambda: shop.get(f"/v1/orders/{order['order_id']}/events"),
            "list": lambda: shop.get("/v1/orders"),
            "list by status": lambda: shop.get("/v1/orders", status="confirmed"),
            "inventory": lambda: shop.get(f"/v1/inventory/{product}"),
            "adjust": lambda: shop.adjust(product, 1, key=secrets.token_hex(8)),
            "adjust, replay": lambda: shop.adjust(product, 1, key="again"),
        }
        order = (await shop.place((product, 1), key="again")).json()
        await shop.adjust(product, 1, key="again")
        cost = {}
        for name, request in requests.items():
            await request()  # a connection's first use of a statement also prepares it
            before = proxy.round_trips
            response = await request()
            assert response.is_success
            cost[name] = proxy.round_trips - before
        assert {name: trips for name, trips in cost.items() if trips != 1} == {"replay": 2, "adjust, replay": 2}
