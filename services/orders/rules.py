"""What is always true of the database, as a table: for each invariant the SQL of its violations, and its repair."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from services.common import ids
from services.contracts.orders import EventType
from services.orders import domain
from services.orders.domain import PAYMENT_TRANSITIONS, TRANSITIONS, CancelReason, S, Transition
from services.orders.histories import BETWEEN
from services.orders.recount import ROLLUPS
from services.orders.tables import PARTITIONED
from services.orders.tally import STOCK_ON_HAND, STOCK_RESERVED


class Scope(Enum):
    """How much one snapshot has to hold for an invariant to be judged.

    PAGE: some orders with all their rows; its statement is given `Page.bounds`. PRODUCTS: all lines of some products;
    it is given their ids. DAY: all events of a day. TABLE: the whole table, which is a small one.
    """

    PAGE = auto()
    PRODUCTS = auto()
    DAY = auto()
    TABLE = auto()


@dataclass(frozen=True, slots=True)
class Invariant:
    """`sql` gives its violations (id, detail); None: the fold decides, or of days `recount.DRIFT_OF_DAY`.

    `rows` is the table whose rows it judges. `repair` says what to do about a violation.
    """

    name: str
    rows: str
    sql: str | None
    repair: str
    scope: Scope = Scope.PAGE


_REBUILD: Final = "Run `orders rebuild`: it recreates the order and its lines from the events."
_PAYMENT_REPAIR: Final = (
    "Compare its events with its payment: `orders rebuild` if they tell another row; otherwise set it right at the"
    " payment provider, from where it comes back as an event."
)
_STOCK_REPAIR: Final = "Run `orders rebuild`: it sets stock right by what orders and movements add up to."

_ROLLUP_REPAIR: Final = "Run `orders rebuild`: it adds to the rollups what they are off by."


_OF_PRODUCTS: Final = "product_id = ANY($1)"
_OF_PAGE: Final = f"created_at >= $1 AND created_at < $2 AND {BETWEEN}"


def _moves(rows: Iterable[Transition[S]]) -> str:
    return ", ".join(
        f"('{source}', '{row.event}', '{target}')"
        for row in rows
        for source in sorted(row.sources)
        for target in row.targets
    )


_LEGAL_STARTS: Final = ", ".join(
    "({}, '{}', '{}')".format(str(method is None).upper(), *domain.starts_as(method)) for method in (None, "pm")
)

# What each status of a payment says of the amounts, then what the status of an order says of its payment.
_PAYMENT_STATUS: Final = f"""
SELECT order_id AS id, format('%s, %s: captured %s of %s, refunded %s, payment method %s, reason %s', status,
    payment_status, captured_amount, total_amount, refunded_amount, coalesce(payment_method, 'none'),
    coalesce(cancel_reason, 'none')) AS detail
FROM orders.orders
WHERE {_OF_PAGE} AND (
    CASE payment_status
        WHEN 'captured' THEN captured_amount = total_amount AND refunded_amount = 0
        WHEN 'partially_captured' THEN captured_amount BETWEEN 1 AND total_amount - 1 AND refunded_amount = 0
        WHEN 'refunded' THEN refunded_amount = total_amount
        WHEN 'partially_refunded' THEN refunded_amount BETWEEN 1 AND total_amount - 1
        ELSE captured_amount = 0 AND refunded_amount = 0
    END
    AND (payment_status = 'on_account') = (payment_method IS NULL)
    AND CASE status
        WHEN 'pending' THEN payment_status IN ('unpaid', 'voided')
        WHEN 'cancelled' THEN captured_amount = refunded_amount
            AND (cancel_reason <> '{CancelReason.PAYMENT_FAILED}' OR payment_status = 'failed')
        ELSE payment_status NOT IN ('unpaid', 'failed')
    END
) IS NOT TRUE
"""  # noqa: S608 # what is put in is a constant

_PARTITIONS: Final = f"""
WITH leaves AS (
    SELECT m.parent, m.partition, m.first_on, c.oid, c.relowner, c.relacl,
           format('orders.%I', m.parent)::regclass AS parent_oid, pg_get_expr(c.relpartbound, c.oid) AS bounds
    FROM orders.months m
    JOIN pg_class c ON c.relname = m.partition AND c.relnamespace = 'orders'::regnamespace
), wanted AS (
    SELECT parent, first_on::date AS first_on
    FROM unnest(ARRAY{list(PARTITIONED)}) parent
    CROSS JOIN (SELECT min(first_on) AS first, max(first_on) AS last FROM leaves) made
    CROSS JOIN generate_series(coalesce(made.first, date_trunc('month', now())::date),
        greatest(made.last, date_trunc('month', now() + INTERVAL '1 month')), INTERVAL '1 month') first_on
), shapes AS (
    SELECT r.oid, k.kind, k.shape
    FROM (SELECT oid FROM leaves UNION SELECT parent_oid FROM leaves) r
    CROSS JOIN LATERAL (
        SELECT 'indexes' AS kind, array_agg(shape ORDER BY shape) AS shape FROM (
            SELECT format('%s %s %s', indisunique, indisvalid,
                regexp_replace(pg_get_indexdef(indexrelid), '^.* USING ', '')) AS shape
            FROM pg_index WHERE indrelid = r.oid) i
        UNION ALL
        SELECT 'constraints', array_agg(shape ORDER BY shape) FROM (
            SELECT format('%s %s', pg_get_constraintdef(oid), convalidated) AS shape
            FROM pg_constraint WHERE conrelid = r.oid AND contype IN ('c', 'n', 'p', 'u')) c
        UNION ALL
        SELECT 'triggers', coalesce(array_agg(shape ORDER BY shape), '{{}}') FROM (
            SELECT format('%s %s %s %s', tgname, tgtype, tgfoid, tgenabled) AS shape
            FROM pg_trigger WHERE tgrelid = r.oid AND NOT tgisinternal) t
    ) k
)
SELECT parent || to_char(first_on, '_YYYY_MM') AS id, 'the partition is missing' AS detail
FROM wanted LEFT JOIN leaves USING (parent, first_on)
WHERE leaves.oid IS NULL
UNION ALL
SELECT partition, 'its bounds are not the month of its name: ' || bounds
FROM leaves
WHERE bounds IS DISTINCT FROM format('FOR VALUES FROM (%L) TO (%L)',
    first_on::timestamptz, (first_on + INTERVAL '1 month')::timestamptz)
UNION ALL
SELECT partition, format('its %s are not those of orders.%s', ours.kind, parent)
FROM leaves
JOIN shapes ours ON ours.oid = leaves.oid
JOIN shapes theirs ON theirs.oid = leaves.parent_oid AND theirs.kind = ours.kind
WHERE ours.shape IS DISTINCT FROM theirs.shape
UNION ALL
SELECT relation.oid::regclass::text, format('its trigger %s is missing or disabled', wanted_trigger)
FROM (
    SELECT oid FROM leaves WHERE parent = 'order_events' UNION SELECT 'orders.order_events'::regclass
) relation
CROSS JOIN unnest(ARRAY['append_only', 'append_only_truncate']) wanted_trigger
WHERE NOT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = relation.oid AND tgname = wanted_trigger AND tgenabled IN ('O', 'A'))
UNION ALL
SELECT partition, 'its foreign key to the orders of its month is missing'
FROM leaves
WHERE parent = 'order_items' AND NOT EXISTS (
    SELECT FROM pg_constraint k JOIN leaves month ON month.oid = k.confrelid
    WHERE k.conrelid = leaves.oid AND k.contype = 'f' AND month.parent = 'orders' AND month.first_on = leaves.first_on)
UNION ALL
SELECT partition, format('%s has %s on it', grantee::regrole, string_agg(privilege_type, ', '))
FROM leaves CROSS JOIN LATERAL aclexplode(relacl)
WHERE grantee <> relowner
GROUP BY partition, grantee
"""  # noqa: S608 # what is put in are constants

INVARIANTS: Final = (
    Invariant("order_row_is_fold", "orders", None, _REBUILD),
    Invariant("items_are_fold", "order_items", None, _REBUILD),
    Invariant(
        "line_total",
        "order_items",
        f"""
SELECT order_id AS id, format('line %s: %s times %s is not %s', line_no, quantity, unit_price, line_total) AS detail
FROM orders.order_items
WHERE {_OF_PAGE} AND line_total <> unit_price::numeric * quantity
""",  # noqa: S608 # what is put in is a constant
        _REBUILD,
    ),
    Invariant(
        "total_amount",
        "orders",
        f"""
SELECT order_id AS id, format('total_amount is %s, its lines and adjustments make %s', total_amount, made) AS detail
FROM (
    SELECT o.order_id, o.total_amount, coalesce(i.amount, 0) + coalesce(
        (SELECT sum((a ->> 'amount')::numeric) FROM jsonb_array_elements(o.adjustments) a), 0) AS made
    FROM orders.orders o
    LEFT JOIN (
        SELECT order_id, sum(line_total) AS amount FROM orders.order_items
        WHERE {_OF_PAGE} GROUP BY order_id
    ) i USING (order_id)
    WHERE {_OF_PAGE}
) o
WHERE total_amount <> made
""",  # noqa: S608 # what is put in is a constant
        _REBUILD,
    ),
    Invariant(
        "item_count",
        "orders",
        f"""
SELECT o.order_id AS id, format('item_count is %s, it has %s lines', o.item_count, coalesce(i.lines, 0)) AS detail
FROM orders.orders o
LEFT JOIN (
    SELECT order_id, count(*) AS lines FROM orders.order_items
    WHERE {_OF_PAGE} GROUP BY order_id
) i USING (order_id)
WHERE {_OF_PAGE} AND o.item_count <> coalesce(i.lines, 0)
""",  # noqa: S608 # what is put in is a constant
        _REBUILD,
    ),
    Invariant(
        "versions_1_to_n",
        "order_events",
        f"""
SELECT order_id AS id, format('version is %s, its events are %s, from %s to %s',
    o.version, coalesce(e.events, 0), e.first, e.last) AS detail
FROM (SELECT order_id, version FROM orders.orders WHERE {_OF_PAGE}) o
FULL JOIN (
    SELECT order_id, count(*) AS events, min(version) AS first, max(version) AS last FROM orders.order_events
    WHERE {_OF_PAGE} GROUP BY order_id
) e USING (order_id)
WHERE (e.first = 1 AND e.last = e.events AND o.version = e.last) IS NOT TRUE
""",  # noqa: S608 # what is put in is a constant
        "If all events are there, run `orders rebuild`; a lost event has to come back from a backup or from the topic.",
    ),
    Invariant(
        "legal_transitions",
        "order_events",
        f"""
SELECT order_id AS id, format('version %s: %s takes it from %s, %s to %s, %s', version, type,
    coalesce(before, 'nothing'), coalesce(paid_before, 'nothing'), coalesce(status, 'nothing'),
    coalesce(payment_status, 'nothing')) AS detail
FROM (
    SELECT order_id, version, type, status, method, payment_status,
           lag(status) OVER one_order AS before, lag(payment_status) OVER one_order AS paid_before
    FROM (
        SELECT order_id, created_at, shard, version, type, data -> 'after' ->> 'status' AS status,
               data -> 'after' ->> 'payment_status' AS payment_status, data -> 'change' ->> 'payment_method' AS method
        FROM orders.order_events
        WHERE {_OF_PAGE}
    ) e
    WINDOW one_order AS (PARTITION BY order_id, created_at, shard ORDER BY version)
) e
WHERE CASE
    WHEN before IS NULL
        THEN type = '{EventType.PLACED}' AND (method IS NULL, status, payment_status) IN ({_LEGAL_STARTS})
    WHEN payment_status = paid_before AND (before, type, status) IN ({_moves(TRANSITIONS)}) THEN TRUE
    ELSE status = before AND (paid_before, type, payment_status) IN ({_moves(PAYMENT_TRANSITIONS)})
END IS NOT TRUE
""",  # noqa: S608 # what is put in are constants
        "Events are never edited. Find who wrote it by its actor, and set the order right with a further command.",
    ),
    Invariant(
        "amounts_within_total",
        "orders",
        f"""
SELECT order_id AS id, format('refunded %s, captured %s, total %s', refunded_amount, captured_amount, total_amount)
    AS detail
FROM orders.orders
WHERE {_OF_PAGE}
  AND (0 <= refunded_amount AND refunded_amount <= captured_amount AND captured_amount <= total_amount) IS NOT TRUE
""",  # noqa: S608 # what is put in is a constant
        _PAYMENT_REPAIR,
    ),
    Invariant("payment_status_is_true", "orders", _PAYMENT_STATUS, _PAYMENT_REPAIR),
    Invariant("stock_reserved", "inventory", STOCK_RESERVED.format(of=_OF_PRODUCTS), _STOCK_REPAIR, Scope.PRODUCTS),
    Invariant("stock_on_hand", "inventory", STOCK_ON_HAND.format(of=_OF_PRODUCTS), _STOCK_REPAIR, Scope.PRODUCTS),
    *(Invariant(f"{table}_is_sum", table, None, _ROLLUP_REPAIR, Scope.DAY) for table in ROLLUPS),
    Invariant(
        "product_copy",
        "products",
        """
SELECT product_id AS id, CASE
    WHEN c.product_id IS NULL THEN 'the catalogue has no such product'
    WHEN p.version > c.version THEN format('its copy is of version %s, the catalogue has %s', p.version, c.version)
    ELSE format('its copy of version %s is (%s, %s %s, active %s), the catalogue has (%s, %s %s, active %s)', p.version,
        p.name, p.price, p.currency, p.active, c.name, c.price, c.currency, c.active)
END AS detail
FROM orders.products p
LEFT JOIN catalog.products c USING (product_id)
WHERE c.product_id IS NULL OR p.version > c.version
   OR (p.version = c.version AND (p.name, p.price, p.currency, p.active) <> (c.name, c.price, c.currency, c.active))
""",
        "Set its version to 0, or delete it when there is no such product; then let orders-projector read the topic"
        " anew, as docs/consuming.md says.",
        Scope.TABLE,
    ),
    Invariant(
        "outbox_row_has_its_event",
        "outbox",
        f"""
SELECT o.order_id AS id, format('position %s, version %s: %s', o.position, o.version,
    CASE WHEN e.order_id IS NULL THEN 'there is no such event' ELSE 'its slice is wrong' END) AS detail
FROM (
    TABLE orders.outbox
    UNION ALL
    SELECT waiting.* FROM relay.parked CROSS JOIN LATERAL jsonb_populate_record(NULL::orders.outbox, content) waiting
    WHERE outbox = 'orders'
) o
LEFT JOIN orders.order_events e USING (order_id, created_at, shard, version)
WHERE e.order_id IS NULL OR o.slice <> o.shard % {ids.SLICES}
""",  # noqa: S608 # what is put in are constants
        "The relay parks the order: see `orders outbox --parked`. Delete the row from relay.parked, or bring its event"
        " back from a backup; then `orders outbox --release` sends what waits for it.",
        Scope.TABLE,
    ),
    Invariant(
        "partitions_present_and_alike",
        "months",
        _PARTITIONS,
        "A missing month: `orders partitions --create-ahead 3`. Otherwise make the partition what create_month makes.",
        Scope.TABLE,
    ),
)
