"""What a cache holds and by which names: an answer's bytes behind a line that says whose, which and how new it is.

    1 0000000000000007 0001763865993123 <owner> <id>\\n<body>

The fields before the owner have fixed places, so that a script on the server can read the version.
"""

from typing import Final, Literal, NamedTuple

from services.contracts.cache import Kind

FORMAT: Final = "1"
_FIELDS: Final = 5
VERSION_MAX: Final = 10**16 - 1  # sixteen digits; a script's numbers are exact up to 2^53, which is less

Outcome = Literal["hit", "miss", "bypass"]


class Key(NamedTuple):
    """One thing. Its three names share a hash tag, so that they are in one slot of a cluster."""

    kind: Kind
    id: str

    @property
    def value(self) -> str:
        """Of the answer's bytes."""
        return f"{self.kind.prefix}:v:{{{self.id}}}"

    @property
    def lease(self) -> str:
        """Of who may store them."""
        return f"{self.kind.prefix}:l:{{{self.id}}}"

    @property
    def fence(self) -> str:
        """Of the newest version that was invalidated."""
        return f"{self.kind.prefix}:f:{{{self.id}}}"


class Entry(NamedTuple):
    """An answer: `body` as it is sent, at `version`, of `owner` (empty when it is nobody's own)."""

    owner: str
    version: int
    body: bytes


class Answer(NamedTuple):
    """What a read gives. A hit was read from the database `age_seconds` ago: at `at_ms`, by the server's clock."""

    entry: Entry
    outcome: Outcome
    age_seconds: float = 0.0
    at_ms: int = 0


def encode(key: Key, entry: Entry, at_ms: int) -> bytes:
    """The value that is stored. ValueError for what could not be read again."""
    if not 0 <= entry.version <= VERSION_MAX or any(blank in entry.owner + key.id for blank in " \n"):
        raise ValueError(f"{key.kind.name} {key.id!r} of {entry.owner!r} at version {entry.version} cannot be cached")
    return f"{FORMAT} {entry.version:016} {at_ms:016} {entry.owner} {key.id}\n".encode() + entry.body


def decode(key: Key, value: bytes) -> tuple[Entry, int]:
    """The answer, and the server's time when it was read (ms). ValueError when the value is not one of `key`'s."""
    head, _, body = value.partition(b"\n")
    fields = head.decode().split(" ")
    if len(fields) != _FIELDS or fields[0] != FORMAT or fields[-1] != key.id:
        raise ValueError(f"{value[:100]!r} is no value of {key.kind.name} {key.id}")
    return Entry(fields[3], int(fields[1]), body), int(fields[2])
