"""Whether the rollups are what the counted events make, and how they are set right."""

from collections.abc import Sequence
from typing import Final

from services.common.db import WriteConnection
from services.contracts.envelope import ORDERS_TOPIC
from services.contracts.orders import EventType
from services.orders.repository import INBOX_CONSUMER
from services.orders.rollups import ADD, COUNTED_AFTER, UncountableError, count, records
from services.orders.sales import PRODUCT_SALES, SALES, STATUS_COUNTS, Deltas

_COUNTED: Final = f"""
WITH counted AS MATERIALIZED (
    SELECT e.order_id, e.created_at, e.shard, e.version, e.type, (e.occurred_at AT TIME ZONE 'UTC')::date AS day,
           e.data -> 'after' ->> 'currency' AS currency, e.data -> 'after' ->> 'status' AS status,
           (e.data -> 'after' ->> 'total_amount')::numeric AS total,
           CASE WHEN e.type IN ('{EventType.PLACED}', '{EventType.REFUNDED}') THEN e.data -> 'change' END AS change
    FROM orders.order_events e
    LEFT JOIN orders.inbox i
        ON i.consumer = '{INBOX_CONSUMER}' AND i.topic = '{ORDERS_TOPIC}' AND i.key = e.order_id::text
    WHERE CASE WHEN i.key IS NULL THEN e.occurred_at < now() - {COUNTED_AFTER} ELSE e.version <= i.last_version END
)
"""  # noqa: S608 # what is put in are constants


def _drift(table: str, keys: str, columns: Sequence[str], told: str) -> str:
    """Rows of `table` that are not what `told` makes of the counted events: id, detail, keys, and both sums."""
    kept = f"SELECT {keys}, ARRAY[{', '.join(columns)}]::numeric[] AS sums FROM orders.{table}"  # noqa: S608 # constants
    none = f"array_fill(0::numeric, ARRAY[{len(columns)}])"
    return f"""{_COUNTED}, told AS ({told})
SELECT concat_ws(' ', {keys}) AS id, {keys}, coalesce(kept.sums, {none}) AS kept, coalesce(told.sums, {none}) AS told,
       format('{", ".join(columns)} are %s, the counted events make %s', coalesce(kept.sums, {none}),
              coalesce(told.sums, {none})) AS detail
FROM ({kept}) kept FULL JOIN told USING ({keys})
WHERE coalesce(kept.sums, {none}) <> coalesce(told.sums, {none})
"""  # noqa: S608 # the same


# By table: what is wrong in it, in one snapshot, however far the projector has come.
DRIFT: Final = {
    "sales_daily": _drift(
        "sales_daily",
        "day, currency",
        SALES,
        """
        SELECT day, currency, ARRAY[count(*) FILTER (WHERE type = 'order.placed'), coalesce(sum(units), 0),
            coalesce(sum(gross), 0), coalesce(sum(discounts), 0), coalesce(sum(charges), 0),
            count(*) FILTER (WHERE type = 'order.cancelled'),
            coalesce(sum(total) FILTER (WHERE type = 'order.cancelled'), 0),
            coalesce(sum((change ->> 'amount')::numeric) FILTER (WHERE type = 'order.refunded'), 0)]::numeric[] AS sums
        FROM counted
        LEFT JOIN LATERAL (
            SELECT sum((line ->> 'quantity')::bigint) AS units, sum((line ->> 'line_total')::numeric) AS gross
            FROM jsonb_array_elements(change -> 'items') line
        ) lines ON type = 'order.placed'
        LEFT JOIN LATERAL (
            SELECT sum((one ->> 'amount')::numeric) FILTER (WHERE one ->> 'kind' = 'discount') AS discounts,
                   sum((one ->> 'amount')::numeric) FILTER (WHERE one ->> 'kind' <> 'discount') AS charges
            FROM jsonb_array_elements(change -> 'adjustments') one
        ) adjustments ON type = 'order.placed'
        WHERE type IN ('order.placed', 'order.cancelled', 'order.refunded')
        GROUP BY day, currency
        """,
    ),
    "sales_daily_product": _drift(
        # By the lines, which are what the events tell by another rule: there is no ULID in SQL.
        "sales_daily_product",
        "day, currency, product_id",
        PRODUCT_SALES,
        """
        SELECT c.day, c.currency, i.product_id, ARRAY[sum(i.quantity), sum(i.line_total)]::numeric[] AS sums
        FROM counted c
        JOIN orders.order_items i ON i.order_id = c.order_id AND i.created_at = c.created_at AND i.shard = c.shard
        WHERE c.type = 'order.placed'
        GROUP BY c.day, c.currency, i.product_id
        """,
    ),
    "orders_by_status": _drift(
        "orders_by_status",
        "placed_on, currency, status",
        STATUS_COUNTS,
        """
        SELECT placed_on, currency, status, ARRAY[count(*), sum(total)]::numeric[] AS sums
        FROM (
            SELECT DISTINCT ON (order_id) (created_at AT TIME ZONE 'UTC')::date AS placed_on, currency, status, total
            FROM counted ORDER BY order_id, version DESC
        ) latest
        GROUP BY placed_on, currency, status
        """,
    ),
}

# Of the last days, what no message was counted for: the topic has lost it, it was loaded, or it is on its way.
_UNCOUNTED: Final = f"""
SELECT e.order_id, max(e.version) AS version
FROM orders.order_events e
LEFT JOIN orders.inbox i
    ON i.consumer = '{INBOX_CONSUMER}' AND i.topic = '{ORDERS_TOPIC}' AND i.key = e.order_id::text
WHERE e.occurred_at >= now() - {COUNTED_AFTER} AND e.version > coalesce(i.last_version, 0)
GROUP BY e.order_id
"""  # noqa: S608 # constants
_BATCH_ORDERS: Final = 500


async def recount(connection: WriteConnection) -> tuple[int, list[str]]:
    """Every event there was is counted and every rollup is what they make; gives the rows set right, and what was left.

    Safe while the projector counts: what is new is counted as it does it, a transaction a batch; then what each row is
    off by, taken in one snapshot together with what the inbox says is counted, is added in one transaction, which
    changes nothing of what was counted meanwhile. Ended early, nothing is half done: run it again.
    """
    left = []
    uncounted = await connection.fetch(_UNCOUNTED)
    for start in range(0, len(uncounted), _BATCH_ORDERS):
        batch = {row["order_id"]: row["version"] for row in uncounted[start : start + _BATCH_ORDERS]}
        while batch:
            try:
                async with connection.transaction():
                    await count(connection, batch)
                break
            except UncountableError as error:
                left.append(str(error))
                del batch[error.order_id]
    deltas = Deltas()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        wrong = {table: await connection.fetch(sql) for table, sql in DRIFT.items()}
    for sums, rows in zip((deltas.sales, deltas.products, deltas.statuses), wrong.values(), strict=True):
        for row in rows:
            sums[tuple(row.values())[1:-3]] = [
                int(told - kept) for told, kept in zip(row["told"], row["kept"], strict=True)
            ]
    await ADD.rows(connection, **records(deltas))
    return sum(map(len, wrong.values())), left
