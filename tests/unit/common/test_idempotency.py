import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import DomainError
from services.common.idempotency import key_from, request_hash

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=4)
few = settings(max_examples=40)  # JSON is slow to make


def quoted(key: str) -> str:
    """As a string of RFC 9651."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(KEYS)
def test_a_key_is_the_same_quoted_and_bare(key: str) -> None:
    assert key_from(quoted(key)) == key
    if not (len(key) > 1 and key[0] == key[-1] == '"'):
        assert key_from(key) == key_from(f" {key} ") == key


@pytest.mark.parametrize(
    "header", [None, "", " ", '""', "a b", "\u00e9", "a\x00", "a\x7f", "k" * 256, quoted("k" * 256)]
)
def test_what_is_no_key_is_missing(header: str | None) -> None:
    with pytest.raises(DomainError) as refusal:
        key_from(header)
    assert (refusal.value.code, refusal.value.status) == ("key_missing", 400)


@few
@given(st.dictionaries(st.text("abcdef"), JSON, max_size=4))
def test_the_order_of_members_does_not_change_the_hash(body: dict[str, object]) -> None:
    assert request_hash("POST", "/x", body) == request_hash("POST", "/x", dict(reversed(body.items())))


@few
@given(JSON, JSON)
def test_other_bodies_have_other_hashes(a: object, b: object) -> None:
    same = request_hash("POST", "/x", a) == request_hash("POST", "/x", b)
    assert same == (repr(_sorted(a)) == repr(_sorted(b)))  # unlike ==, repr tells 1 from True


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def test_method_path_and_body_each_count() -> None:
    hashes = [request_hash("POST", "/a", {}), request_hash("PUT", "/a", {}), request_hash("POST", "/b", {})]
    hashes += [request_hash("POST", "/a", []), request_hash("POST", "/a", None)]
    assert len({*hashes}) == len(hashes)
    assert {len(each) for each in hashes} == {32}
