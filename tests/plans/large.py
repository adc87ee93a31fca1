"""A shop of ORDERS orders in MONTHS months, with something to find for every statement."""

from typing import TYPE_CHECKING

from loadtests.occasions import KEY, USED_KEY, Facts
from services.orders import seed

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]

ORDERS = 200_000
MONTHS = 24
PRODUCTS = 5_000
CUSTOMERS = 20_000
WAITING = 3_200  # rows of each outbox and of each table of invalidations
STEPS_SHARDS = 800  # of 4,096: payments of which have steps, and of a tenth of them one is open
DUE = 40  # steps of payments, and orders that have expired


async def load(url: str) -> None:
    """The database there, migrated and empty, is that shop afterwards. By COPY, as `orders seed` does it."""
    await seed.seed(url, products=PRODUCTS, orders=ORDERS, months=MONTHS, stock=1_000, seed=13)


async def plant(owner: "Connection") -> None:
    """What is no history: keys, customers, payments, and what waits for somebody."""
    facts = await Facts.of(owner)
    assert facts is not None
    await _known_keys(owner, facts)
    await _customers(owner, facts)
    await _payments(owner, facts)
    await _waiting(owner)
    await owner.execute("UPDATE orders.summary_refresh SET as_of = now(), since = now() - INTERVAL '1 day'")
    await owner.execute("REFRESH MATERIALIZED VIEW orders.order_summaries")
    await owner.execute("VACUUM (ANALYZE)")


async def _known_keys(owner: "Connection", facts: Facts) -> None:
    await owner.execute(
        "INSERT INTO orders.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)"
        " SELECT shard, user_id, order_id, 'h', order_id, 1, created_at FROM orders.orders WHERE created_at > $1"
        " ON CONFLICT DO NOTHING",
        facts.order.created_at,
    )
    await owner.execute(
        "INSERT INTO orders.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)"
        " VALUES ($1, $2, $3, 'h', $4, 1, now())",
        *(facts.order.shard, KEY, USED_KEY, facts.order.order_id),
    )
    await owner.execute(
        "INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved, subject,"
        " key, request_hash, created_at)"
        " SELECT product_id, 1000000 + n, 1, 'r', 'process:test', n, 0, $1, CASE n WHEN 1 THEN $2 ELSE n::text END,"
        "        'h', now()"
        " FROM orders.inventory CROSS JOIN generate_series(1, 10) n",
        *(KEY, USED_KEY),
    )


async def _customers(owner: "Connection", facts: Facts) -> None:
    await owner.execute(
        "INSERT INTO customers.profiles (user_id, version, person, updated_at)"
        " SELECT CASE n WHEN 1 THEN $1 ELSE gen_random_uuid() END, 2, '{}', now() FROM generate_series(1, $2) n",
        *(facts.buyer, CUSTOMERS),
    )
    await owner.execute(
        "INSERT INTO customers.addresses (user_id, address_id, destination, created_at, key, request_hash)"
        " SELECT user_id, uuidv7(), '{}', now(), 'k' || n, 'h'"
        " FROM customers.profiles CROSS JOIN generate_series(1, 3) n"
    )


async def _payments(owner: "Connection", facts: Facts) -> None:
    await owner.execute(
        "INSERT INTO payments.payments (order_id, created_at, shard, user_id, status, provider, payment_method,"
        " currency, amount, authorized_amount, captured_amount, refunded_amount, version, order_version, updated_at)"
        " SELECT order_id, created_at, shard, user_id, 'authorized', 'sandbox', 'pm', 'USD', 9, 9, 0, 0, 1, 1, now()"
        " FROM orders.orders WHERE order_id = $1 ON CONFLICT DO NOTHING",
        facts.order.order_id,
    )
    await owner.execute(
        "INSERT INTO payments.steps (order_id, created_at, shard, number, kind, amount, final, state, due_at, attempts,"
        " asked_at, ended_at)"
        " SELECT order_id, created_at, shard, 1, 'authorize', 9, TRUE, 'done', NULL, 1, now(), now()"
        " FROM payments.payments WHERE shard < $1 OR order_id = $2",
        *(STEPS_SHARDS, facts.order.order_id),
    )
    await owner.execute(
        "INSERT INTO payments.steps (order_id, created_at, shard, number, kind, amount, final, state, due_at, attempts,"
        " asked_at)"
        " SELECT order_id, created_at, shard, 2, 'capture', 9, TRUE, 'open',"
        "        now() + CASE WHEN row_number() OVER () <= $1 THEN -INTERVAL '1 min' ELSE INTERVAL '1 hour' END,"
        "        1, now()"
        " FROM payments.payments WHERE shard < $2 / 10 OR order_id = $3",
        *(DUE, STEPS_SHARDS, facts.order.order_id),
    )


async def _waiting(owner: "Connection") -> None:
    await owner.execute(
        "UPDATE orders.orders o SET status = 'pending', expires_at = now() + make_interval(mins => n::int - $1)"
        " FROM (SELECT order_id, created_at, row_number() OVER () AS n FROM orders.orders"
        "       WHERE status = 'confirmed' ORDER BY created_at DESC LIMIT 1000) young"
        " WHERE o.order_id = young.order_id AND o.created_at = young.created_at",
        DUE,
    )
    await owner.execute(
        "INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)"
        " SELECT shard, shard % 16, order_id, created_at, 1 FROM orders.orders"
        " ORDER BY created_at DESC, order_id DESC LIMIT $1",
        WAITING,
    )
    for schema in ("catalog", "payments"):
        await owner.execute(
            f"INSERT INTO {schema}.outbox"  # noqa: S608 # names of ours
            " (slice, aggregate_id, version, event_id, type, data, actor, occurred_at)"
            " SELECT n % 16, uuidv7(), 1, uuidv7(), 'test', '{}', 'process:test', now() FROM generate_series(1, $1) n",
            WAITING,
        )
    for schema, columns, values in (
        ("orders", "shard, slice", "n % 4096, n % 16"),
        ("customers", "shard, slice", "n % 4096, n % 16"),
        ("catalog", "slice", "n % 16"),
    ):
        await owner.execute(
            f"INSERT INTO {schema}.invalidations ({columns}, keys)"  # noqa: S608 # names of ours
            f" SELECT {values}, '{{}}' FROM generate_series(1, $1) n",
            WAITING,
        )
