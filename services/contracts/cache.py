"""What is cached of each service, under which names: its writers say what has changed, the relay repeats it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Room:
    """How much of a kind each process that reads it may keep in its own memory, before the cache."""

    entries: int
    bytes: int  # all that the process has for it


@dataclass(frozen=True, slots=True)
class Kind:
    """A sort of thing that is cached: its `name` in metrics, the `prefix` of its keys, how long a value may live.

    With `l1`, processes also keep it themselves, and what another has replaced can be seen for as long as `Watch` says.
    """

    name: str
    prefix: str  # <owner>:<thing>, as in orders:order
    ttl_ms: int
    l1: Room | None = None


ORDER: Final = Kind("order", "orders:order", 30_000)
INVENTORY: Final = Kind("inventory", "orders:inventory", 15_000, Room(entries=10_000, bytes=16 * 1024 * 1024))
PROFILE: Final = Kind("profile", "customers:profile", 60_000)
PRODUCT: Final = Kind("product", "catalog:product", 300_000, Room(entries=10_000, bytes=16 * 1024 * 1024))

# By what rows of `invalidations` call them: {prefix: {id as a UUID: version}}.
KINDS: Final[Mapping[str, Kind]] = {kind.prefix: kind for kind in (ORDER, INVENTORY, PROFILE, PRODUCT)}
TTL_MS_MAX: Final = max(kind.ttl_ms for kind in KINDS.values())
