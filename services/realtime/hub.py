"""Who is to have which event. Subscribers register here before they fetch what was before."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson
import structlog
from prometheus_client import Counter, Histogram

from services.common.metrics import BUCKETS_SECONDS
from services.common.stream import Received

log = structlog.get_logger()
realtime_events_total = Counter("realtime_events_total", "Events come from Kafka, whether or not anybody follows them")
realtime_unreadable_total = Counter("realtime_unreadable_total", "Messages on Kafka that are no event of an order")
realtime_event_age_seconds = Histogram(
    "realtime_event_age_seconds",
    "From an event's time (shortly before its commit) to its subscribers' queues",
    buckets=BUCKETS_SECONDS,
)


@dataclass(frozen=True, slots=True)
class Frame:
    """What is sent: text, made once however many get it. `size` is in bytes."""

    text: str
    size: int


@dataclass(frozen=True, slots=True)
class LiveEvent:
    """An event as it came from Kafka. Without a frame it is known to exist, and that is all."""

    order_id: str
    version: int
    user_id: str | None
    frame: Frame | None


class Subscriber(Protocol):
    """Whoever follows orders."""

    def live(self, event: LiveEvent) -> None:
        """One event of an order it follows, perhaps not for the first time. Must neither wait nor fail."""


class Hub:
    """Subscribers by order, and by the user whose orders they all follow."""

    def __init__(self) -> None:
        self._of_order: defaultdict[str, set[Subscriber]] = defaultdict(set)
        self._of_user: defaultdict[str, set[Subscriber]] = defaultdict(set)

    def follow_order(self, order_id: str, subscriber: Subscriber) -> None:
        """`subscriber` has every event of the order that comes from now on."""
        self._of_order[order_id].add(subscriber)

    def follow_user(self, user_id: str, subscriber: Subscriber) -> None:
        """`subscriber` has every event of all orders of the user that comes from now on."""
        self._of_user[user_id].add(subscriber)

    def leave_order(self, order_id: str, subscriber: Subscriber) -> None:
        """No more of that order, unless it is one of a followed user's."""
        _remove(self._of_order, order_id, subscriber)

    def leave_user(self, user_id: str, subscriber: Subscriber) -> None:
        """No more of that user, but for orders that are followed one by one."""
        _remove(self._of_user, user_id, subscriber)

    def publish(self, messages: Sequence[Received]) -> None:
        """Every subscriber has the events of `messages`. Never fails: what cannot be read is counted and told."""
        for message in messages:
            realtime_events_total.inc()
            event = _read(message)
            if event is not None:
                for subscriber in self._subscribers(event):
                    subscriber.live(event)

    def _subscribers(self, event: LiveEvent) -> Iterable[Subscriber]:
        # Neither set changes meanwhile: `live` does not subscribe. Whoever is in both drops what comes twice.
        yield from self._of_order.get(event.order_id, ())
        if event.user_id is not None:
            yield from self._of_user.get(event.user_id, ())


def _remove(registry: dict[str, set[Subscriber]], key: str, subscriber: Subscriber) -> None:
    if (found := registry.get(key)) is not None:
        found.discard(subscriber)
        if not found:
            del registry[key]


def _read(message: Received) -> LiveEvent | None:
    """The event; one without a frame when only its place can be read, so that its subscribers fetch it."""
    try:
        order_id, version = (message.key or b"").decode(), int(message.headers["ce_sequence"])
    except (UnicodeDecodeError, ValueError, KeyError) as error:
        _unreadable(message, error)
        return None
    try:
        event: Any = orjson.loads(message.value)
        user_id = event["data"]["after"]["user_id"]
        at = datetime.fromisoformat(event["occurred_at"])
        if (event["order_id"], event["version"]) != (order_id, version):
            raise ValueError("body and headers name different events")
    except (ValueError, KeyError, TypeError) as error:
        _unreadable(message, error)
        return LiveEvent(order_id, version, None, None)
    realtime_event_age_seconds.observe(max(0.0, (datetime.now(UTC) - at).total_seconds()))
    return LiveEvent(order_id, version, user_id, Frame(message.value.decode(), len(message.value)))


def _unreadable(message: Received, error: Exception) -> None:
    realtime_unreadable_total.inc()
    log.error("realtime.unreadable", partition=message.partition, offset=message.offset, error=repr(error))
