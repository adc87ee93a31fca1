"""Time as the system tells it: UTC, whole milliseconds (what an id can carry)."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], datetime]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> datetime:
    """The present, in UTC, cut to the millisecond."""
    return from_ms(time.time_ns() // 1_000_000)


def from_ms(ms: int) -> datetime:
    """The instant `ms` milliseconds after the epoch, exactly (no float). OverflowError beyond the year 9999."""
    return EPOCH + timedelta(milliseconds=ms)


def to_ms(at: datetime) -> int:
    """Whole milliseconds since the epoch, exactly."""
    return (at - EPOCH) // timedelta(milliseconds=1)


def to_text(at: datetime) -> str:
    """RFC 3339 with milliseconds and Z, the one form on the wire (2026-11-22T18:16:50.123Z), of an instant in UTC."""
    return at.isoformat(timespec="milliseconds")[:-6] + "Z"  # for +00:00


def month_of(at: datetime) -> datetime:
    """The first instant of the month (UTC) that holds `at`."""
    return at.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def add_months(month: datetime, months: int) -> datetime:
    """The first instant of the month `months` later (earlier when negative)."""
    index = month.year * 12 + month.month - 1 + months
    return month.replace(year=index // 12, month=index % 12 + 1)
