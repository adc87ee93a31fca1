"""What a provider's callback is read for: that it is the provider's, and which order it is about. Nothing else."""

import time
from collections.abc import Mapping
from typing import Final

import orjson
import stripe

from services.common.signature import TOLERANCE_SECONDS, is_signed

SIGNATURES: Final[Mapping[str, str]] = {"sandbox": "Payment-Signature", "stripe": "Stripe-Signature"}


def is_genuine(provider: str, headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    """Whether whoever knows `secret` has signed `body` within the last minutes. Nothing is with an empty secret."""
    header = headers.get(SIGNATURES[provider])
    if provider == "sandbox":
        return is_signed(header, secret.encode(), body, now=time.time())
    try:
        # Stripe's documentation, "Verify webhook signatures manually": several signatures while a secret is changed.
        return bool(secret) and stripe.WebhookSignature.verify_header(
            body.decode(), header or "", secret, tolerance=TOLERANCE_SECONDS
        )
    except (stripe.SignatureVerificationError, UnicodeDecodeError):
        return False


def order_of(provider: str, body: bytes) -> str | None:
    """The order it is about, None when it is about none of ours. KeyError, TypeError, ValueError: no callback.

    Of Stripe's events the object has the metadata that its payment was made with (API reference, "The Event object").
    """
    told = orjson.loads(body)
    if provider == "sandbox":
        return str(told["order_id"])
    found = told["data"]["object"].get("metadata", {}).get("order_id")
    return None if found is None else str(found)
