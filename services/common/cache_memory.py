"""What a process keeps of a cache in its own memory: bounded, and nothing that was dropped while it was asked for."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from services.common.cached import Entry
from services.contracts.cache import Room

# Of an answer beside its bytes: the entry, its names, its places in the table. Measured, see the test of the bound.
BESIDE_BYTES: Final = 800


@dataclass(frozen=True, slots=True)
class Held:
    """An answer, read from the database at `at_ms` by the server's clock, good until `until` (monotonic, seconds)."""

    entry: Entry
    at_ms: int
    until: float

    @property
    def size(self) -> int:
        """Bytes, about."""
        return BESIDE_BYTES + len(self.entry.body)


class Memory:
    """The answers that were used last, by the name that is heard when they are replaced.

    Between asking the cache and keeping what it said, news may come that the answer is replaced: it would drop nothing
    then, and the answer would stay. So who wants to keep an answer says so before asking, and may keep it if no news
    of it has come since.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._asking: dict[str, object] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: str, now: float) -> Held | None:
        """The answer, unless it is too old."""
        held = self._held.get(name)
        if held is None:
            return None
        if held.until <= now:
            self._forget(name)
            return None
        self._held.move_to_end(name)
        return held

    def asks(self, name: str) -> object | None:
        """The right to keep what is asked for from now on; None while another has it. It ends with `answered`."""
        if name in self._asking:
            return None
        right = self._asking[name] = object()
        return right

    def answered(self, name: str, right: object, held: Held | None) -> None:
        """`held` is kept, unless it was dropped since `right` was given, or does not fit."""
        if self._asking.get(name) is not right:
            return
        del self._asking[name]
        if held is None or held.size > self._room.bytes:
            return
        self._forget(name)
        self._held[name] = held
        self.bytes += held.size
        while len(self._held) > self._room.entries or self.bytes > self._room.bytes:
            self._forget(next(iter(self._held)))

    def drop(self, name: str) -> None:
        """It has been replaced: what is kept goes, and what was asked for before now is not kept."""
        self._asking.pop(name, None)
        self._forget(name)

    def flush(self) -> None:
        """Anything may have been replaced."""
        self._asking.clear()
        self._held.clear()
        self.bytes = 0

    def _forget(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            self.bytes -= held.size
