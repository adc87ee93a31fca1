import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common import clock, ids
from services.common.errors import DomainError

INSTANTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)).map(
    lambda at: at.replace(microsecond=at.microsecond // 1000 * 1000)
)
FIRST, NOW = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC)


@given(user_id=st.uuids(), at=INSTANTS)
def test_an_order_id_tells_its_time_and_its_buyers_shard(user_id: uuid.UUID, at: datetime) -> None:
    made = ids.new_order_key(user_id, at)
    assert ids.order_key(made.order_id) == made == (made.order_id, at, ids.shard_of(user_id))
    assert made.order_id.version == 7
    assert made.order_id.variant == uuid.RFC_4122


@given(st.uuids(), st.uuids())
def test_text_is_a_ulid_that_sorts_as_the_id_does(a: uuid.UUID, b: uuid.UUID) -> None:
    for each in (a, b):
        text = ids.to_text(each)
        assert len(text) == 26
        assert ids.from_text(text) == ids.from_text(text.lower()) == each
    assert (ids.to_text(a) < ids.to_text(b)) == (a.int < b.int)


@given(st.text(max_size=30))
def test_text_that_is_read_is_text_that_is_written(text: str) -> None:
    try:
        value = ids.from_text(text)
    except ValueError:
        return
    assert ids.to_text(value) == text.upper()


@pytest.mark.parametrize(
    "text", ["", "0" * 25, "0" * 27, "8" + "0" * 25, "U" * 26, "0" * 25 + "\u017f", "0" * 26 + "\n"]
)
def test_what_is_no_ulid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a ULID"):
        ids.from_text(text)


def test_shards_are_the_first_twelve_bits_of_sha_256() -> None:
    assert ids.shard_of(uuid.UUID(int=0)) == 0x374  # sha256(16 zero bytes) = 374708ff…
    shards = {ids.shard_of(uuid.UUID(int=number)) for number in range(40_000)}
    assert (min(shards), max(shards)) == (0, ids.SHARDS - 1)


@pytest.mark.parametrize(
    "order_id",
    [
        uuid.UUID("00000000-0000-4000-8000-000000000000"),  # version 4
        uuid.UUID("00000000-0000-7000-0000-000000000000"),  # version 7, another variant
        uuid.UUID("ffffffff-ffff-7000-8000-000000000000"),  # beyond the year 9999
    ],
)
def test_what_is_no_order_id_is_refused(order_id: uuid.UUID) -> None:
    with pytest.raises(ValueError, match=r"UUIDv7|9999"):
        ids.order_key(order_id)
    with pytest.raises(DomainError, match="not_found"):
        ids.order_key_in_path(ids.to_text(order_id), first=FIRST, now=NOW)


@pytest.mark.parametrize(
    ("at", "possible"),
    [
        (FIRST - timedelta(milliseconds=1), False),
        (FIRST, True),
        (NOW, True),
        (NOW + ids.CLOCK_SKEW, True),
        (NOW + ids.CLOCK_SKEW + timedelta(milliseconds=1), False),
    ],
)
def test_an_id_in_a_path_is_possible_from_the_first_partition_to_now_and_a_little(at: datetime, possible: bool) -> None:
    key = ids.new_order_key(uuid.uuid4(), at)
    text = ids.to_text(key.order_id)
    if possible:
        assert ids.order_key_in_path(text, first=FIRST, now=NOW) == key
    else:
        with pytest.raises(DomainError, match="not_found"):
            ids.order_key_in_path(text, first=FIRST, now=NOW)


def test_ids_of_one_millisecond_differ() -> None:
    made = {ids.new_order_key(uuid.UUID(int=1), clock.EPOCH).order_id for _ in range(1000)}
    made |= {ids.new_id(clock.EPOCH) for _ in range(1000)}
    assert len(made) == 2000
