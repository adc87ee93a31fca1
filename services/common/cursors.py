"""Cursors of lists: a place, sealed together with what was asked, so that it goes on with that and nothing else."""

import base64
import hashlib
from uuid import UUID

from services.common.errors import DomainError

_SEAL_BYTES = 8


def sealed(place: UUID, question: bytes) -> str:
    """The cursor of `place` in the answer to `question`."""
    return sealed_bytes(place.bytes, question)


def opened(cursor: str, question: bytes) -> UUID:
    """The place in a cursor that was sealed for `question`. 400 `bad_cursor` for any other."""
    place = opened_bytes(cursor, question)
    if len(place) != 16:
        raise bad_cursor()
    return UUID(bytes=place)


def sealed_bytes(place: bytes, question: bytes) -> str:
    """As `sealed`, of a place that is more than an id."""
    return base64.urlsafe_b64encode(place + _seal(place, question)).decode()


def opened_bytes(cursor: str, question: bytes) -> bytes:
    """As `opened`. What the place says is the caller's to judge: anybody can seal one."""
    try:
        raw = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
    except ValueError:
        raise bad_cursor() from None
    place, seal = raw[:-_SEAL_BYTES], raw[-_SEAL_BYTES:]
    if seal != _seal(place, question):
        raise bad_cursor()
    return place


def bad_cursor() -> DomainError:
    """The cursor is none of ours, or another question's."""
    return DomainError("bad_cursor", 400, "The cursor is not one we gave for this query.")


def _seal(place: bytes, question: bytes) -> bytes:
    return hashlib.sha256(place + question).digest()[:_SEAL_BYTES]  # against mistakes: a forged place shows no secret
