"""What becomes of a batch: poison is taken out of it and gaps are filled, until the handler takes what is left."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog
from prometheus_client import Counter as Metric

from services.common.handle import Fill, Gap, GapError, Handle, NotFilledError, PoisonError
from services.common.inbox import arrival
from services.common.stream import Message, Received

FILLED: Final = "filled"
WAITING: Final = "waiting"
log = structlog.get_logger()
consumer_gaps_total = Metric(
    "consumer_gaps_total", "Gaps that were filled, and tries to fill one that were not enough", ["topic", "outcome"]
)


@dataclass(frozen=True, slots=True)
class Settled:
    """What stands before `next_offset` is in the database, stale, or among the `poison`: reasons by offset.

    A batch that is not settled to its end `waits`, for the reason told.
    """

    outcomes: Mapping[str, int]
    poison: Mapping[int, str]
    next_offset: int
    waits: str | None = None


async def settle(topic: str, messages: Sequence[Received], handle: Handle, fill: Fill | None) -> Settled:
    """What became of `messages` (at least one, of one partition, in its order). One transaction of the handler's.

    A gap is filled with events that come before the message that has it. When they are poison themselves, that message
    is too: so what cannot be applied in its order leaves the partition in its order. Raises what the handler raises,
    and GapError when there is no `fill`.
    """
    left, poison = list(messages), dict[int, str]()
    filled: set[int] = set()
    outcomes: Mapping[str, int] = Counter()
    next_offset, waits = messages[-1].offset + 1, None
    while left:
        try:
            outcomes = await handle(topic, left)
            break
        except PoisonError as error:
            offset = error.message.offset
            of_topic = any(error.message is message for message in messages)
            poison[offset] = error.reason if of_topic else f"an event before it cannot be applied: {error.reason}"
            left = [message for message in left if message.offset != offset]
        except GapError as error:
            if fill is None:
                raise
            left, unfilled = await _fill(topic, left, error.gaps, fill, filled)
            if unfilled is not None:
                next_offset, waits = unfilled
    return Settled(outcomes, {o: reason for o, reason in poison.items() if o < next_offset}, next_offset, waits)


async def _fill(
    topic: str, messages: Sequence[Received], gaps: Sequence[Gap], fill: Fill, filled: set[int]
) -> tuple[list[Received], tuple[int, str] | None]:
    """`messages` with what was missing, up to the first that still misses something: its offset, and why."""
    gap_at = {gap.message.offset: gap for gap in gaps}
    whole: list[Received] = []
    for message in messages:
        gap = gap_at.get(message.offset)
        if gap is not None and message is gap.message:
            try:
                if message.offset in filled:
                    raise NotFilledError("what was found did not fill it")
                whole += _between(gap, await fill(gap.key, gap.after_version))
            except NotFilledError as error:
                consumer_gaps_total.labels(topic, WAITING).inc()
                return whole, (
                    message.offset,
                    f"{gap.key} {gap.version} waits for what is after {gap.after_version}: {error}",
                )
            filled.add(message.offset)
            consumer_gaps_total.labels(topic, FILLED).inc()
            log.warning("consumer.gap_filled", topic=topic, key=gap.key, after=gap.after_version, before=gap.version)
        whole.append(message)
    return whole, None


def _between(gap: Gap, events: Sequence[Message]) -> list[Received]:
    """Every version after gap.after_version and before gap.version, in place of the message that misses them."""
    found = {}
    for event in events:
        placed = replace(gap.message, key=event.key, value=event.value, headers=dict(event.headers))
        try:
            found[arrival(placed).version] = placed
        except PoisonError as error:
            raise NotFilledError(f"what was found is no event: {error.reason}") from error
    try:
        return [found[version] for version in range(gap.after_version + 1, gap.version)]
    except KeyError as error:
        raise NotFilledError(f"there is no version {error} yet") from error
