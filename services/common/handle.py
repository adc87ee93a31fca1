"""What a consumer is given messages by and with: the handler, what it may say of a message, and who fills its gaps."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from services.common.stream import Message, Received

# Gives how many of the messages had which outcome. It owns the transaction: when it returns they are committed, when it
# raises nothing of them is (or, with a transaction a key, some keys are, and are stale when they come again). The
# messages are of one topic, each partition in its order: all that was fetched of it, and those of one partition alone
# when that raises.
Handle = Callable[[str, Sequence[Received]], Awaitable[Mapping[str, int]]]

# Gives the events of a key after a version, in version order, as they would have come from the topic; or those there
# are by now. NotFilledError when nobody can tell.
Fill = Callable[[str, int], Awaitable[Sequence[Message]]]


class PoisonError(Exception):
    """No handler will ever understand `message`, however often it comes."""

    def __init__(self, message: Received, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Gap:
    """`message` is version `version` of `key`, of which the versions up to `after_version` have been applied."""

    message: Received
    key: str
    after_version: int
    version: int


class GapError(Exception):
    """The versions between are to be applied first; nothing of the batch is. `gaps` are all there are in it."""

    def __init__(self, gaps: Sequence[Gap]) -> None:
        super().__init__(", ".join(f"{gap.key}: {gap.version} after {gap.after_version}" for gap in gaps))
        self.gaps = gaps


class NotFilledError(Exception):
    """Who has the missing events is away, refuses, or does not have them yet."""
