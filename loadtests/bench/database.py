"""The database alone: our statements, by pgbench, on the rows that the API's sides work on."""

from collections.abc import Sequence
from itertools import count
from typing import Final
from uuid import UUID

from loadtests.bench import numbered, pgbench
from loadtests.bench.machine import programs_cpu
from loadtests.bench.measure import Side, Work
from loadtests.bench.stage import BUYER, ORDERS_STEP_MS, PRODUCTS, Stage
from services.common import clock, ids
from services.common.db import Statement
from services.common.schemas import PAGE_DEFAULT
from services.orders.place import PLACE
from services.orders.queries import LIST_ORDERS, LIST_ORDERS_BY_STATUS
from services.orders.repository import ALL_EVENTS, GET_EVENTS

NAME: Final = "pgbench"
# Whose orders pgbench places: their texts are numbers where the API's have ids, so no list of the API's shows them.
OTHER_BUYER: Final = numbered.thing("user", 2)
_runs = count(1)  # numbers what is placed, so that no run repeats another's keys

# Low digits of the order's id: run, client and how many it has placed before, 15 in all.
_NUMBER: Final = (
    r"\set i :i + 1",
    r"\set number (:run * 1000 + :client_id) * 100000000 + :i",
    r"\set at_ms :start_ms + :i",
)
_TEXTS: Final = ("subject", "user_id", "user_text", "currency", "status", "payment_status", "actor", "created_text")


def _placing(row: str, products: Sequence[str], lines: int) -> str:
    """Places an order of so many lines; `products` are the numbers of their products, in pgbench's or SQL's words."""
    order = numbered.order_sql(":number", ":at_ms", ":shard")

    def array(*each: str) -> str:
        return f"ARRAY[{', '.join(each)}]"

    return pgbench.script(
        PLACE,
        {
            **pgbench.variables([*_TEXTS, "shard", "slice", "adjustments", "amount_max"]),
            "order_id": order,
            "event_id": order,
            "order_text": "lpad(CAST(:number AS text), 26, '0')",
            "created_at": numbered.at_sql(":at_ms"),
            "key": f"'{row}/{NAME}/' || CAST(:number AS text)",
            "request_hash": "''",
            "product_ids": array(*(numbered.thing_sql("product", product) for product in products)),
            "product_texts": array(*(f"lpad(CAST({product} AS text), 26, '0')" for product in products)),
            "quantities": array(*["1"] * lines),
            "seen_prices": array(*["NULL"] * lines),
            "agreed": "FALSE",
            "adjusted_amount": "0",
            **dict.fromkeys(
                ("payment_method", "shipping_address_id", "expires_at", "expires_text", "traceparent"), "NULL"
            ),
        },
        [*_NUMBER, *(() if products[0].isdigit() else (rf"\set product random(0, {PRODUCTS - 1})",))],
    )


def placing(url: str, *, row: str = "place", product: int | None = None, name: str = NAME) -> Side:
    """Placing, of one to three products that are drawn, or of one unit of this one."""
    if product is None:
        drawn = [f"(:product + {line}) % {PRODUCTS}" for line in range(3)]
        scripts = [_placing(row, drawn[:lines], lines) for lines in (1, 2, 3)]
    else:
        scripts = [_placing(row, [str(product)], 1)]

    async def run(seconds: float) -> Work:
        now, shard = clock.now(), ids.shard_of(OTHER_BUYER)
        defined = {
            "i": 0,
            "run": next(_runs),
            "start_ms": clock.to_ms(now),
            "shard": shard,
            "slice": shard % ids.SLICES,
            "subject": OTHER_BUYER,
            "user_id": OTHER_BUYER,
            "user_text": OTHER_BUYER,
            "currency": "USD",
            "status": "confirmed",
            "payment_status": "on_account",
            "actor": f"user:{OTHER_BUYER}",
            "created_text": clock.to_text(now),
            "adjustments": "[]",
            "amount_max": 2**53 - 1,
        }
        return await pgbench.pgbench(url, scripts, seconds, defined)

    return Side(name, run, programs_cpu)


def getting(stage: Stage) -> Side:
    """Any of the buyer's orders at a time."""
    values = {
        **pgbench.variables(["shard", "user_id", "any_owner", "after_version", "limit"]),
        "order_id": numbered.order_sql(":number", ":at_ms", ":shard"),
        "created_at": numbered.at_sql(":at_ms"),
    }
    drawn = [rf"\set number random(0, {stage.orders - 1})", rf"\set at_ms :start_ms + :number * {ORDERS_STEP_MS}"]
    defined = {
        "start_ms": clock.to_ms(stage.first_at),
        "shard": ids.shard_of(BUYER),
        "user_id": BUYER,
        "any_owner": "false",
        "after_version": 0,
        "limit": ALL_EVENTS,
    }
    return pgbench.reading(stage.role_url, NAME, GET_EVENTS, values, defined, drawn)


def listing(stage: Stage, status: str | None = None) -> Side:
    """The buyer's newest page."""
    statement: Statement = LIST_ORDERS if status is None else LIST_ORDERS_BY_STATUS
    now = clock.now()
    defined = {
        "user_id": BUYER,
        "status": status,
        "from_at": clock.to_text(clock.month_of(stage.first_at)),
        "before_at": clock.to_text(now),
        "before_id": UUID(int=0),
        "limit": PAGE_DEFAULT,
    }
    return pgbench.reading(stage.role_url, NAME, statement, pgbench.variables(list(defined)), defined)
