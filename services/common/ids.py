"""Ids: a ULID on the wire, a UUID in the column, and in an order's id its month and its shard.

The 128 bits are a valid ULID and a valid UUIDv7 (RFC 9562, section 5.7) at once:
`48 bit ms | 4 bit version 7 | 12 bit shard | 2 bit variant | 62 bit random`.
"""

import hashlib
import re
import secrets
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from services.common import clock
from services.common.errors import not_found

SHARDS = 4096  # 12 bits, the width of rand_a in a UUIDv7
SLICES = 16  # of an outbox, a slice being shard % SLICES: how many relays may share the work
CLOCK_SKEW = timedelta(seconds=10)  # an order made by a host whose clock is ahead can be read on one whose is not

_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [first + second for first in _CROCKFORD for second in _CROCKFORD]
_SHIFTS = range(120, -1, -10)
_FROM_CROCKFORD = str.maketrans(_CROCKFORD, "0123456789ABCDEFGHIJKLMNOPQRSTUV")  # to that of int(…, 32)
_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}\Z")  # Crockford's base32, no more than 128 bits


class OrderKey(NamedTuple):
    """What every statement by id binds: together they name one partition and one shard."""

    order_id: UUID
    created_at: datetime
    shard: int


def shard_of(user_id: UUID) -> int:
    """The shard (0..4095) of all orders of `user_id`: the first 12 bits of SHA-256 over its 16 bytes.

    Of products and other things with an outbox alike, by their own id.
    """
    return int.from_bytes(hashlib.sha256(user_id.bytes).digest()[:2]) >> 4


def new_order_key(user_id: UUID, at: datetime) -> OrderKey:
    """A fresh order id, made at `at` (whole milliseconds) in the shard of `user_id`."""
    shard = shard_of(user_id)
    return OrderKey(_uuid7(at, shard), at, shard)


def new_id(at: datetime) -> UUID:
    """A fresh id without a shard (events)."""
    return _uuid7(at, secrets.randbits(12))


def order_key(order_id: UUID) -> OrderKey:
    """Time and shard, read from the bits. ValueError when it is not an order id (UUIDv7 within the year 9999)."""
    bits = order_id.int
    if (bits >> 76) & 0xF != 7 or (bits >> 62) & 0b11 != 0b10:
        raise ValueError(f"not a UUIDv7: {order_id}")
    try:
        created_at = clock.from_ms(bits >> 80)
    except OverflowError as error:
        raise ValueError(f"beyond the year 9999: {order_id}") from error
    return OrderKey(order_id, created_at, (bits >> 64) & 0xFFF)


def order_key_in_path(text: str, *, first: datetime, now: datetime) -> OrderKey:
    """The key an id in a path names. 404 `not_found`, without a query, when no such order can exist.

    That is when it is malformed, not version 7, made after `now` (and a little for clocks that differ), or made before
    `first`, the start of the first partition.
    """
    try:
        key = order_key(from_text(text))
    except ValueError:
        raise not_found() from None
    if not first <= key.created_at <= now + CLOCK_SKEW:
        raise not_found()
    return key


def canonical_in_path(text: str) -> str:
    """The ULID text an id in a path is. 404 `not_found` when it is malformed."""
    try:
        return canonical(text)
    except ValueError:
        raise not_found() from None


def to_text(value: UUID) -> str:
    """The ULID text (26 characters, upper case) of an id."""
    # As python-ulid does, in a third of its time: 128 bits behind two zero bits, ten at a time.
    bits = value.int
    return "".join([_PAIRS[bits >> shift & 0x3FF] for shift in _SHIFTS])


def from_text(text: str) -> UUID:
    """The id a ULID text names; lower case is accepted. ValueError when it is malformed or over 128 bits."""
    return UUID(int=int(canonical(text).translate(_FROM_CROCKFORD), 32))


def canonical(text: str) -> str:
    """The ULID text, in upper case, that `to_text` would give. ValueError when it is malformed or over 128 bits."""
    upper = text.upper()
    if not (text.isascii() and _ULID.match(upper)):  # the upper case of some other letters is ASCII
        raise ValueError(f"not a ULID: {text[:40]!r}")
    return upper


def uuid7_bits(at_ms: int, rand_a: int, rand_b: int) -> int:
    """The UUIDv7 of that millisecond with these 12 and 62 bits."""
    return at_ms << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | rand_b


def _uuid7(at: datetime, rand_a: int) -> UUID:
    return UUID(int=uuid7_bits(clock.to_ms(at), rand_a, secrets.randbits(62)))
