"""Signed requests between servers: a header with a time and an HMAC over both the time and the body.

`Payment-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">`. The time bounds how long a request that was
seen by somebody else can be sent again.
"""

import hashlib
import hmac
import re
from typing import Final

TOLERANCE_SECONDS: Final = 300  # clocks differ, and a request may wait in a queue
_HEADER: Final = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})", re.ASCII)


def sign(secret: bytes, body: bytes, *, at: int) -> str:
    """The header's value for `body`, sent `at` (Unix seconds)."""
    return f"t={at},v1={_digest(secret, body, at)}"


def is_signed(header: str | None, secret: bytes, body: bytes, *, now: float) -> bool:
    """Whether whoever knows `secret` signed `body` less than TOLERANCE_SECONDS ago. Nothing is with an empty secret."""
    found = _HEADER.fullmatch(header or "")
    if not found or not secret:
        return False
    at = int(found[1])
    same = hmac.compare_digest(_digest(secret, body, at), found[2])
    return same and abs(now - at) <= TOLERANCE_SECONDS


def _digest(secret: bytes, body: bytes, at: int) -> str:
    return hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
