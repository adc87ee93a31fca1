"""Personal data, and the one place that turns it into what is stored and back: in the database and in the cache.

What is stored is opaque to everything else: nothing is searched by it, and no statement looks into it. It begins with a
byte that says how it was made, so that another way (encryption) can come and what was stored before stays readable.
Nothing here shows its values in a `repr`: what is logged by mistake says nothing of anybody.
"""

from dataclasses import dataclass
from typing import Any, Final

import orjson

CLEAR: Final = b"\x01"  # JSON (RFC 8259) follows, as it is


@dataclass(frozen=True, slots=True, repr=False)
class Person:
    """How to call and to reach somebody; None where they have not said."""

    name: str | None = None
    email: str | None = None
    phone: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class Destination:
    """Where something can be sent. `country` is ISO 3166-1 alpha-2."""

    name: str
    lines: tuple[str, ...]
    city: str
    region: str | None
    postal_code: str | None
    country: str
    phone: str | None


def sealed(value: Person | Destination) -> bytes:
    """What is stored for `value`."""
    return CLEAR + orjson.dumps(value)


def person(stored: bytes) -> Person:
    """What `sealed` was given. ValueError when it was made in a way that is not known here."""
    return Person(**_opened(stored))


def destination(stored: bytes) -> Destination:
    """What `sealed` was given. ValueError as `person`."""
    content = _opened(stored)
    return Destination(**content | {"lines": tuple(content["lines"])})


def _opened(stored: bytes) -> dict[str, Any]:
    if stored[:1] != CLEAR:
        raise ValueError("personal data of a format that is not known here")
    found: dict[str, Any] = orjson.loads(stored[1:])
    return found
