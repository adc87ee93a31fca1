"""Cursors of lists: a place, sealed together with what was asked, so that it goes on with that and nothing else."""

import base64
import hashlib
from uuid import UUID

from services.common.errors import DomainError

_SEAL_BYTES = 8


def sealed(place: UUID, question: bytes) -> str:
    """The cursor of `place` in the answer to `question`."""
    return base64.urlsafe_b64encode(place.bytes + _seal(place.bytes, question)).decode()


def opened(cursor: str, question: bytes) -> UUID:
    """The place in a cursor that was sealed for `question`. 400 `bad_cursor` for any other."""
    try:
        raw = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
    except ValueError:
        raise bad_cursor() from None
    if len(raw) != 16 + _SEAL_BYTES or raw[16:] != _seal(raw[:16], question):
        raise bad_cursor()
    return UUID(bytes=raw[:16])


def bad_cursor() -> DomainError:
    """The cursor is none of ours, or another question's."""
    return DomainError("bad_cursor", 400, "The cursor is not one we gave for this query.")


def _seal(place: bytes, question: bytes) -> bytes:
    return hashlib.sha256(place + question).digest()[:_SEAL_BYTES]  # against mistakes: a forged place shows no secret
