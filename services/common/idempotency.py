"""Idempotency keys: how a client says that two requests are one (draft-ietf-httpapi-idempotency-key-header)."""

import hashlib
import re
from typing import Final

import orjson

from services.common.errors import DomainError

_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}\Z")
HEADER: Final = "idempotency-key"


def key_from(header: str | None) -> str:
    """The key, which may be quoted (RFC 9651, section 3.3.3): `"k"` and `k` are one. 400 `key_missing` otherwise."""
    key = (header or "").strip()
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = re.sub(r'\\(["\\])', r"\1", key[1:-1])
    if not _VISIBLE.match(key):
        raise DomainError("key_missing", 400, "Send Idempotency-Key with 1 to 255 visible ASCII characters.")
    return key


def request_hash(method: str, path: str, body: object) -> bytes:
    """SHA-256 over what the request asks for: method, path and the parsed body, its keys sorted."""
    canonical = orjson.dumps([method, path, body], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).digest()


def key_reused() -> DomainError:
    """The key has been used for something else."""
    return DomainError("key_reused", 422, "This Idempotency-Key was used for another request.")
