"""The transaction of a command on an order, by pgbench: its key and lock, the order's events, its next event, commit.

It is committed, and the next one meets the order a version later. Orders are drawn from all there are: SQL leaves it to
Python which command an order's status allows, so each may be shipped or cancelled again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import orjson

from loadtests.bench import numbered, pgbench
from loadtests.bench.loaded import NUMBER, ORDER, ORDER_LINES, USER, Past, product_sql
from loadtests.bench.machine import programs_cpu
from loadtests.bench.measure import Phase, Side, VoidError, Work
from loadtests.bench.stage import Connection
from services.common import ids
from services.orders.advance import ADVANCE
from services.orders.repository import ALL_EVENTS, GET_EVENTS, LOCK

# Of stock, so that what made-up orders have never reserved can be shipped and cancelled.
RESERVE: Final = "UPDATE orders.inventory SET reserved = on_hand / 2"
_runs = count(1)  # numbers what is done, so that no run repeats another's keys


@dataclass(frozen=True, slots=True)
class Command:
    """What one does to an order of ORDER_LINES lines of a unit each, and to the stock of each line's product."""

    name: str
    event_type: str
    status: str
    on_hand: int
    reserved: int
    shipped: Sequence[int]  # of each line; empty when lines stay as they are
    details: Mapping[str, str]  # columns that it sets


CANCEL: Final = Command("cancel", "order.cancelled", "cancelled", 0, -1, (), {"cancel_reason": "customer"})
SHIP: Final = Command("ship", "order.shipped", "shipped", -1, -1, (1,) * ORDER_LINES, {"tracking": "BENCH-1"})


def side(url: str, name: str, past: Past, command: Command) -> Side:
    """The command on any order of `past`."""
    script = _script(command)

    async def run(seconds: float) -> Work:
        after = {"status": command.status, "payment_status": "on_account", "currency": "USD", "total_amount": 3996}
        defined = {
            **past.defined(),
            "i": 0,
            "run": next(_runs),
            "seen": 0,
            "any_owner": "false",
            "after_version": 0,
            "limit": ALL_EVENTS,
            "data": orjson.dumps({"change": {**command.details, "status": command.status}, "after": after}).decode(),
        }
        return await pgbench.pgbench(url, [script], seconds, defined)

    return Side(name, run, programs_cpu)


async def written(connection: Connection, command: Command, turns: Sequence[Phase], side: str) -> dict[str, int]:
    """Events, keys and outbox rows that the command's side has left. VoidError when it was counted for more."""
    found: dict[str, int] = dict(await connection.fetchrow(_WRITTEN, command.event_type, f"{command.name}/%") or {})
    counted = sum(turn.count for turn in turns if turn.side == side)
    if not counted <= found["events"] == found["keys"] == found["sent"]:
        raise VoidError(f"{side} has done {counted} of {command.name}, but written {found}")
    return found


_WRITTEN: Final = """
SELECT (SELECT count(*) FROM orders.order_events WHERE type = $1) AS events,
       (SELECT count(*) FROM orders.idempotency_keys WHERE key LIKE $2) AS keys,
       (SELECT count(*) FROM orders.outbox JOIN orders.order_events USING (order_id, created_at, shard, version)
        WHERE type = $1) AS sent
"""


def _script(command: Command) -> str:
    order: dict[str, str] = {"order_id": ORDER, "created_at": numbered.at_sql(":at_ms"), "shard": ":shard"}
    owner = {"user_id": USER, "any_owner": ":any_owner"}
    key = {
        "subject": f"CAST({USER} AS text)",
        "key": f"'{command.name}/' || CAST(:run AS text) || '/' || CAST(:client_id AS text) || '/' || CAST(:i AS text)",
        "request_hash": "''",
    }
    lock = pgbench.script(LOCK, {**order, **owner, **key, "version": ":seen + 1", "occurred_at": "now()"})
    read = pgbench.script(GET_EVENTS, {**order, **owner, **pgbench.variables(["after_version", "limit"])})
    advance = pgbench.script(ADVANCE, order | _advanced(command))
    return "\n".join(
        [
            *NUMBER,
            r"\set i :i + 1",
            "BEGIN;",
            lock.strip().removesuffix(";") + r" \gset",  # its row is the order's version
            read,
            r"\set next :version + 1",
            advance,
            "COMMIT;",
            "",
        ]
    )


def _advanced(command: Command) -> dict[str, Any]:
    """Parameters of ADVANCE but for the order's key."""
    products = [product_sql(":number", str(line)) for line in range(1, ORDER_LINES + 1)]
    lines = range(1, len(command.shipped) + 1)
    return {
        "slice": f":shard % {ids.SLICES}",
        "status": f"'{command.status}'",
        "payment_status": "'on_account'",
        "total_amount": "3996",
        **dict.fromkeys(("captured_amount", "refunded_amount"), "0"),
        **{name: _text(command.details.get(name)) for name in ("tracking", "cancel_reason")},
        "version": ":next",
        "occurred_at": "now()",
        "line_nos": _integers(lines),
        "shipped_quantities": _integers(command.shipped),
        "returned_quantities": _integers([0 for _ in lines]),
        "product_ids": f"ARRAY[{', '.join(products)}]",
        "on_hand_deltas": _integers([command.on_hand] * ORDER_LINES),
        "reserved_deltas": _integers([command.reserved] * ORDER_LINES),
        "event_id": "uuidv7()",
        "type": f"'{command.event_type}'",
        "data": ":data",
        "actor": f"'user:' || CAST({USER} AS text)",
        "traceparent": "NULL",
    }


def _integers(values: Sequence[int]) -> str:
    return f"CAST('{{{', '.join(map(str, values))}}}' AS integer[])"


def _text(value: str | None) -> str:
    return "NULL" if value is None else f"'{value}'"
