"""Ids that a number names, in Python and in SQL: pgbench, which knows only numbers, then finds the rows of anybody."""

from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from services.common import clock, ids
from services.common.ids import OrderKey

_DIGITS: Final = 15  # decimal digits, which are hexadecimal ones too, after the variant
_PREFIXES: Final = {"product": "01934b70-0000-7000-8000-", "user": "75736572-0000-4000-8000-"}


def thing(kind: str, number: int) -> UUID:
    """The id of a product or a user."""
    return UUID(f"{_PREFIXES[kind]}{number:012d}")


def thing_sql(kind: str, number: str) -> str:
    """The same of a number in SQL."""
    return f"CAST('{_PREFIXES[kind]}' || lpad(CAST({number} AS text), 12, '0') AS uuid)"


def order(number: int, at: datetime, user_id: UUID) -> OrderKey:
    """The id of an order made at `at` (whole milliseconds), told from others of that millisecond by `number`."""
    shard = ids.shard_of(user_id)
    return OrderKey(UUID(f"{clock.to_ms(at):012x}7{shard:03x}9{number:0{_DIGITS}d}"), at, shard)


def order_sql(number: str, at_ms: str, shard: str) -> str:
    """The same of numbers in SQL."""
    return (
        f"CAST(lpad(to_hex(CAST({at_ms} AS bigint)), 12, '0') || '7' || lpad(to_hex(CAST({shard} AS integer)), 3, '0')"
        f" || '9' || lpad(CAST({number} AS text), {_DIGITS}, '0') AS uuid)"
    )


def at_sql(at_ms: str) -> str:
    """The time of a number of milliseconds since 1970."""
    return f"(TIMESTAMPTZ 'epoch' + CAST({at_ms} AS bigint) * INTERVAL '1 millisecond')"


def spread(first: datetime, number: int, step_ms: int) -> datetime:
    """When order `number` is made, of orders that follow each other by `step_ms`."""
    return first + timedelta(milliseconds=number * step_ms)
