"""What is stored can be read again, and nothing else can."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.cached import VERSION_MAX, Entry, Key, decode, encode
from services.contracts.cache import Kind

KIND = Kind("order", "orders:order", 30_000)
WORDS = st.text("ab1é-:{}|", max_size=12)


@given(WORDS, WORDS, st.integers(0, VERSION_MAX), st.integers(0, 10**15), st.binary(max_size=200))
def test_an_entry_comes_back_as_it_was(id_: str, owner: str, version: int, at_ms: int, body: bytes) -> None:
    key, entry = Key(KIND, id_), Entry(owner, version, body)
    assert decode(key, encode(key, entry, at_ms)) == (entry, at_ms)


@given(WORDS, WORDS)
def test_a_value_is_of_one_key_only(one: str, other: str) -> None:
    value = encode(Key(KIND, one), Entry("ann", 1, b"{}"), 0)
    if one != other:
        with pytest.raises(ValueError, match="is no value of"):
            decode(Key(KIND, other), value)


@given(st.binary(max_size=100))
def test_what_nobody_has_stored_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(Key(KIND, "7"), value)


@pytest.mark.parametrize(
    ("id_", "owner", "version"),
    [("7", "an n", 1), ("7", "ann\n", 1), ("7 8", "ann", 1), ("7", "ann", -1), ("7", "ann", VERSION_MAX + 1)],
)
def test_what_could_not_be_read_again_is_not_stored(id_: str, owner: str, version: int) -> None:
    with pytest.raises(ValueError, match="cannot be cached"):
        encode(Key(KIND, id_), Entry(owner, version, b"{}"), 0)


def test_the_version_is_where_the_script_reads_it() -> None:
    value = encode(Key(KIND, "7"), Entry("ann", 42, b"{}"), 1)
    assert int(value[2:18]) == 42  # string.sub(value, 3, 18)


def test_the_three_names_of_a_key_have_one_hash_tag() -> None:
    key = Key(KIND, "7")
    assert (key.value, key.lease, key.fence) == ("orders:order:v:{7}", "orders:order:l:{7}", "orders:order:f:{7}")
