from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import clock

MS = st.integers(0, 253_402_300_799_999)  # to the end of the year 9999
MONTHS = st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)).map(clock.month_of)


@given(MS)
def test_milliseconds_come_back_exactly(ms: int) -> None:
    assert clock.to_ms(clock.from_ms(ms)) == ms


def test_beyond_the_year_9999_is_an_error_and_not_a_wrong_time() -> None:
    with pytest.raises(OverflowError):
        clock.from_ms(253_402_300_800_000)


@given(MS)
def test_text_is_rfc_3339_and_sorts_as_time_does(ms: int) -> None:
    at = clock.from_ms(ms)
    text = clock.to_text(at)
    assert datetime.fromisoformat(text) == at
    assert len(text) == len("2026-11-22T18:16:50.123Z")
    assert text.endswith("Z")


def test_now_is_in_utc_and_whole_milliseconds() -> None:
    now = clock.now()
    assert now.tzinfo is UTC
    assert now.microsecond % 1000 == 0
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=1)


@pytest.mark.parametrize("hours", [-12, 0, 14])
def test_a_month_is_that_of_utc_whatever_the_offset(hours: int) -> None:
    zone = timezone(timedelta(hours=hours))
    first = datetime(2026, 12, 1, tzinfo=UTC)
    assert clock.month_of(first.astimezone(zone)) == first
    assert clock.month_of((first - timedelta(microseconds=1)).astimezone(zone)) == datetime(2026, 11, 1, tzinfo=UTC)


@given(month=MONTHS, a=st.integers(-800, 800), b=st.integers(-800, 800))
def test_months_add_up(month: datetime, a: int, b: int) -> None:
    assert clock.add_months(clock.add_months(month, a), b) == clock.add_months(month, a + b)
    assert clock.add_months(month, 0) == month
    assert timedelta(days=28) <= clock.add_months(month, 1) - month <= timedelta(days=31)
