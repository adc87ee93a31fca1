"""Whether the rollups are what the counted events make, and how they are set right."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.common.db import WriteConnection
from services.contracts.envelope import ORDERS_TOPIC
from services.contracts.orders import EventType
from services.orders.repository import INBOX_CONSUMER
from services.orders.rollups import ADD, COUNTED_AFTER, UncountableError, count, records
from services.orders.sales import PRODUCT_SALES, SALES, STATUS_COUNTS, Deltas

# Events of one day's sums: of orders made on it, by their ids from $2 to $3, and of those that pages have found to have
# one there ($4), or whose events were counted since ($5; never when NULL). Primary keys; one partition an order.
_OF_DAY: Final = f"""(
    SELECT * FROM orders.order_events
    WHERE order_id >= $2 AND order_id < $3
      AND created_at >= uuid_extract_timestamp($2) AND created_at < uuid_extract_timestamp($3)
    UNION ALL
    SELECT e.*
    FROM (
        SELECT unnest($4::uuid[]) AS order_id
        UNION
        SELECT key::uuid FROM orders.inbox
        WHERE consumer = '{INBOX_CONSUMER}' AND topic = '{ORDERS_TOPIC}' AND updated_at >= $5
    ) other
    CROSS JOIN LATERAL (
        SELECT * FROM orders.order_events e
        WHERE e.order_id = other.order_id AND e.created_at = uuid_extract_timestamp(other.order_id)
    ) e
    WHERE NOT (other.order_id >= $2 AND other.order_id < $3)
)"""  # noqa: S608 # constants


def _counted(events: str) -> str:
    """Two queries of a WITH: the counted ones of `events`, and what was sold by them.

    That is by the lines, which are what the events tell by another rule: there is no ULID in SQL, and JSON is dearer.
    """
    return f"""
WITH counted AS MATERIALIZED (
    SELECT e.order_id, e.created_at, e.shard, e.version, e.type, (e.occurred_at AT TIME ZONE 'UTC')::date AS day,
           e.data -> 'after' ->> 'currency' AS currency, e.data -> 'after' ->> 'status' AS status,
           (e.data -> 'after' ->> 'total_amount')::numeric AS total,
           CASE WHEN e.type = '{EventType.PLACED}' THEN e.data -> 'change' -> 'adjustments' END AS adjustments,
           CASE WHEN e.type = '{EventType.REFUNDED}' THEN (e.data -> 'change' ->> 'amount')::numeric END AS refunded
    FROM {events} e
    LEFT JOIN orders.inbox i
        ON i.consumer = '{INBOX_CONSUMER}' AND i.topic = '{ORDERS_TOPIC}' AND i.key = e.order_id::text
    WHERE CASE WHEN i.key IS NULL THEN e.occurred_at < now() - {COUNTED_AFTER} ELSE e.version <= i.last_version END
), sold AS MATERIALIZED (
    SELECT c.day, c.currency, i.product_id, sum(i.quantity) AS units, sum(i.line_total) AS gross
    FROM counted c
    JOIN orders.order_items i ON i.order_id = c.order_id AND i.created_at = c.created_at AND i.shard = c.shard
    WHERE c.type = '{EventType.PLACED}'
    GROUP BY c.day, c.currency, i.product_id
)
"""  # noqa: S608 # what is put in are constants


@dataclass(frozen=True, slots=True)
class _Rollup:
    """A table of sums, what its rows stand for (the day first), its sums, and what `counted` makes of them."""

    table: str
    keys: str
    columns: Sequence[str]
    told: str

    def kept_and_told(self, within: str = "TRUE") -> str:
        """Two queries of a WITH, `<table>_kept` and `<table>_told`, of the rows `within`."""
        return f"""{self.table}_told AS (SELECT * FROM ({self.told}) t WHERE {within}), {self.table}_kept AS (
    SELECT {self.keys}, ARRAY[{", ".join(self.columns)}]::numeric[] AS sums FROM orders.{self.table} WHERE {within}
)"""  # noqa: S608 # constants

    @property
    def drift(self) -> str:
        """Rows that are not what the counted events make: id, detail, keys, and both sums."""
        none = f"array_fill(0::numeric, ARRAY[{len(self.columns)}])"
        kept, told = f"coalesce(kept.sums, {none})", f"coalesce(told.sums, {none})"
        return f"""
SELECT concat_ws(' ', {self.keys}) AS id, {self.keys}, {kept} AS kept, {told} AS told,
       format('{", ".join(self.columns)} are %s, the counted events make %s', {kept}, {told}) AS detail
FROM {self.table}_kept kept FULL JOIN {self.table}_told told USING ({self.keys})
WHERE {kept} <> {told}"""  # noqa: S608 # the same

    @property
    def day(self) -> str:
        """The name of its first key."""
        return self.keys.partition(",")[0]


_ROLLUPS: Final = (
    _Rollup(
        "sales_daily",
        "day, currency",
        SALES,
        """
        SELECT day, currency, ARRAY[events.orders, coalesce(units, 0), coalesce(gross, 0), discounts, charges,
            cancelled_orders, cancelled, refunded]::numeric[] AS sums
        FROM (
            SELECT day, currency, count(*) FILTER (WHERE type = 'order.placed') AS orders,
                coalesce(sum(one.discounts), 0) AS discounts, coalesce(sum(one.charges), 0) AS charges,
                count(*) FILTER (WHERE type = 'order.cancelled') AS cancelled_orders,
                coalesce(sum(total) FILTER (WHERE type = 'order.cancelled'), 0) AS cancelled,
                coalesce(sum(refunded), 0) AS refunded
            FROM counted
            LEFT JOIN LATERAL (
                SELECT sum((a ->> 'amount')::numeric) FILTER (WHERE a ->> 'kind' = 'discount') AS discounts,
                       sum((a ->> 'amount')::numeric) FILTER (WHERE a ->> 'kind' <> 'discount') AS charges
                FROM jsonb_array_elements(adjustments) a
            ) one ON adjustments <> '[]'
            WHERE type IN ('order.placed', 'order.cancelled', 'order.refunded')
            GROUP BY day, currency
        ) events
        LEFT JOIN (
            SELECT day, currency, sum(units) AS units, sum(gross) AS gross FROM sold GROUP BY day, currency
        ) lines USING (day, currency)
        """,
    ),
    _Rollup(
        "sales_daily_product",
        "day, currency, product_id",
        PRODUCT_SALES,
        "SELECT day, currency, product_id, ARRAY[units, gross]::numeric[] AS sums FROM sold",
    ),
    _Rollup(
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
)
# By table: what is wrong in it, in one snapshot, however far the projector has come.
DRIFT: Final = {
    rollup.table: f"{_counted('orders.order_events')}, {rollup.kept_and_told()} {rollup.drift}" for rollup in _ROLLUPS
}
# The same of one day ($1; the other parameters are those of _OF_DAY) in all tables at once, which events are read for
# once: rollup, id, detail, at most so many of each.
DRIFT_MAX: Final = 20
DRIFT_OF_DAY: Final = (
    f"{_counted(_OF_DAY)}, "  # noqa: S608 # constants
    + ", ".join(rollup.kept_and_told(f"{rollup.day} = $1") for rollup in _ROLLUPS)
    + " UNION ALL ".join(
        f" (SELECT '{rollup.table}' AS rollup, id, detail FROM ({rollup.drift}) d LIMIT {DRIFT_MAX})"  # noqa: S608 # constants
        for rollup in _ROLLUPS
    )
)
ROLLUPS: Final = tuple(rollup.table for rollup in _ROLLUPS)

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
    off by is added in one transaction, which changes nothing of what was counted meanwhile. What a rollup is off by is
    one statement's, which sees its rows, the events, and what the inbox says is counted as of one moment; what is
    counted between two of them is in both sums of the later (READ COMMITTED). Ended early, nothing is half done: run it
    again.
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
    async with connection.transaction(readonly=True):  # so that what is old by now is so for each
        wrong = {table: await connection.fetch(sql) for table, sql in DRIFT.items()}
    for sums, rows in zip((deltas.sales, deltas.products, deltas.statuses), wrong.values(), strict=True):
        for row in rows:
            sums[tuple(row.values())[1:-3]] = [
                int(told - kept) for told, kept in zip(row["told"], row["kept"], strict=True)
            ]
    await ADD.rows(connection, **records(deltas))
    return sum(map(len, wrong.values())), left
