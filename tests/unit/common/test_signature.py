import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.signature import TOLERANCE_SECONDS, is_signed, sign

SECRET, BODY, AT = b"known to both", b'{"order_id": "o"}', 1_700_000_000


def test_it_is_the_documented_hmac() -> None:
    # printf '1700000000.{"order_id": "o"}' | openssl dgst -sha256 -hmac 'known to both'
    assert sign(SECRET, BODY, at=AT) == f"t={AT},v1=df110b7262f4f5a8b9668777cd521a342719b48d715b6aaa1e6691f7dd43266a"


def test_what_was_signed_is_accepted_within_the_tolerance_either_way() -> None:
    header = sign(SECRET, BODY, at=AT)
    for now, accepted in (
        (AT, True),
        (AT + TOLERANCE_SECONDS, True),
        (AT - TOLERANCE_SECONDS, True),
        (AT + TOLERANCE_SECONDS + 1, False),
        (AT - TOLERANCE_SECONDS - 1, False),
    ):
        assert is_signed(header, SECRET, BODY, now=now) is accepted


@settings(deadline=None)
@given(st.binary(), st.binary(min_size=1), st.integers(0, 10**11))
def test_another_secret_body_or_time_is_another_signature(body: bytes, secret: bytes, at: int) -> None:
    header = sign(secret, body, at=at)
    assert is_signed(header, secret, body, now=at)
    assert not is_signed(header, secret + b"x", body, now=at)
    assert not is_signed(header, secret, body + b"x", now=at)
    assert not is_signed(header.replace(f"t={at}", f"t={at + 1}"), secret, body, now=at)


@pytest.mark.parametrize(
    "header", [None, "", "t=1", f"v1={'0' * 64}", f"t={AT},v1={'0' * 64}", f"t={AT},v1=zz", "t=\u0661,v1=" + "0" * 64]
)
def test_what_is_no_signature_is_refused(header: str | None) -> None:
    assert not is_signed(header, SECRET, BODY, now=AT)


def test_nothing_is_signed_with_no_secret() -> None:
    assert not is_signed(sign(b"", BODY, at=AT), b"", BODY, now=AT)
