"""Callbacks as Stripe makes them; those of the sandbox are tried with the sandbox."""

import hashlib
import hmac
import time

import orjson
import pytest

from services.payments.callbacks import is_genuine, order_of

SECRET = "whsec_test"
BODY = orjson.dumps({"type": "payment_intent.succeeded", "data": {"object": {"metadata": {"order_id": "X"}}}})


def signature(body: bytes = BODY, *, secret: str = SECRET, ago: int = 0) -> str:
    """Stripe's scheme: `t=<time>,v1=<hex HMAC-SHA256 of "<time>.<body>">`, one v1 for each secret there is."""
    at = int(time.time()) - ago
    made = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={'0' * 64},v1={made},v0=whatever"


def test_what_stripe_has_signed_is_genuine() -> None:
    assert is_genuine("stripe", {"Stripe-Signature": signature()}, BODY, SECRET)


@pytest.mark.parametrize(
    "header",
    [
        signature(b"another body"),
        signature(secret="whsec_another"),
        signature(ago=3600),
        "t=1",
        "",
    ],
)
def test_what_it_has_not_signed_now_is_not(header: str) -> None:
    assert not is_genuine("stripe", {"Stripe-Signature": header}, BODY, SECRET)


def test_nothing_is_genuine_without_header_or_secret() -> None:
    assert not is_genuine("stripe", {}, BODY, SECRET)
    assert not is_genuine("stripe", {"Stripe-Signature": signature(secret="")}, BODY, "")
    assert not is_genuine("stripe", {"Stripe-Signature": signature()}, b"\xff", SECRET)


def test_the_order_is_in_the_metadata_of_the_object() -> None:
    assert order_of("stripe", BODY) == "X"
    assert order_of("stripe", orjson.dumps({"data": {"object": {"metadata": {}}}})) is None
    assert order_of("stripe", orjson.dumps({"data": {"object": {"id": "po_1"}}})) is None
    with pytest.raises(KeyError):
        order_of("stripe", b"{}")
