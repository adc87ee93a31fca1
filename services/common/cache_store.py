"""What the protocol of `cache` needs of a server. Everything here may fail in any way the driver knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from services.common.cached import Entry, Key

LEASE_MS: Final = (
    2_000  # longer than any read of the primary takes (`statement_timeout`); bounds how late a fill may be
)
FENCE_TTLS: Final = 2  # a fence outlives every value that was read before it


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to store, once, what is read from now on. `at_ms` is when it was given, by the server's clock."""

    token: bytes
    at_ms: int


class Store(Protocol):
    """A cache server."""

    gets_max: int  # values asked for in one call
    keys_max: int  # that it invalidates in one call, in much less time than a call is given

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        """The value there is of each. One round trip."""

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        """The value there is, if it has that version; or else a lease; None when somebody else has it."""

    async def put(self, key: Key, lease: Lease, entry: Entry, ttl_ms: int) -> bool:
        """The entry is there until `ttl_ms` after the lease was given; False when it has lost its right."""

    async def release(self, key: Key, lease: Lease) -> None:
        """Others may have a lease: there was nothing to store."""

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        """No older value is there, nor will be stored by whoever has a lease now. One round trip (per node).

        With `spare`, a value that is at least as new may stay; without, it goes, too, as asking would take time.
        """

    def give_up(self) -> None:
        """A call has had no answer in time: who waits behind it need not wait for the same."""

    async def close(self) -> None:
        """No connection is open."""
