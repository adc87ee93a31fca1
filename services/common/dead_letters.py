"""Dead letters: messages that a consumer did not understand, kept with the reason, and redelivered to its group.

They lie in `<topic>.dlq` as they were (key, value, headers), with headers that say why, whose, and from where. They are
redelivered by `<topic>.redelivery.<group>`, which only that group reads, as if it were the topic. Not by the topic
itself: others have applied them long ago, and a compacted topic would keep the old version as its newest.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.common import clock
from services.common.breaker import Breaker
from services.common.publisher import Publisher
from services.common.stream import (
    RawMessage,
    dead_letter_topic,
    delete_before,
    redelivery_topic,
    topics,
    until_end,
)

REASON_CHARACTERS_MAX: Final = 1_000
_REASON, _GROUP, _AT = "dlq_reason", "dlq_group", "dlq_at"
_ORIGIN: Final = ("dlq_topic", "dlq_partition", "dlq_offset")  # of the message when it first became one
_REDELIVER_AT_ONCE: Final = 50
_BYTES_AT_ONCE: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of a dead-letter topic. Where it came from is text as in its headers; "" where they lack it."""

    topic: str
    partition: int
    offset: int
    group: str
    reason: str
    dead_at: str
    origin: tuple[str, str, str]
    message: RawMessage

    @property
    def redeliverable(self) -> bool:
        """Somebody's: otherwise it was not put there by this library, and nobody would read it."""
        return bool(self.group and self.origin[0])


async def send(
    kafka_url: str, group: str, topic: str, records: Sequence[tuple[Any, str]], *, kafka: Breaker | None = None
) -> None:
    """Each record of aiokafka's, of `topic` or its redelivery, is a dead letter with its reason. StreamError.

    `kafka` is the process's breaker.
    """
    target = dead_letter_topic(topic)
    async with Publisher(kafka_url, client_id=group, topics=[target], kafka=kafka) as publisher:
        await publisher.publish(target, [_dead(group, topic, record, reason) for record, reason in records])


def _dead(group: str, topic: str, record: Any, reason: str) -> RawMessage:
    headers = list(record.headers)
    came_from = dict(zip(_ORIGIN, (topic, str(record.partition), str(record.offset)), strict=True))
    came_from |= {name: value.decode() for name, value in headers if name in _ORIGIN}  # it was redelivered
    told = {
        **came_from,
        _REASON: reason[:REASON_CHARACTERS_MAX],
        _GROUP: group,
        _AT: clock.to_text(clock.now()),
    }
    kept = [(name, value) for name, value in headers if name not in told]
    added = [(name, text.encode(errors="backslashreplace")) for name, text in told.items()]
    empty = record.key is None and record.value is None  # which a client of another make may send, and aiokafka not
    return RawMessage(record.key, b"" if empty else record.value, kept + added)


async def dead_letters(kafka_url: str, topic: str | None = None) -> AsyncIterator[DeadLetter]:
    """Those there are when it is called, of all topics or of `topic`, each partition in its order. StreamError."""
    suffix = dead_letter_topic("")
    for found in await topics(kafka_url):
        if found.endswith(suffix) and topic in {None, found.removesuffix(suffix)}:
            async for record in until_end(kafka_url, found):
                yield _read(record)


def _read(record: Any) -> DeadLetter:
    headers = {name: value.decode(errors="backslashreplace") for name, value in record.headers}
    origin_topic, origin_partition, origin_offset = (headers.get(name, "") for name in _ORIGIN)
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        group=headers.get(_GROUP, ""),
        reason=headers.get(_REASON, ""),
        dead_at=headers.get(_AT, ""),
        origin=(origin_topic, origin_partition, origin_offset),
        message=RawMessage(record.key, record.value, list(record.headers)),
    )


async def redeliver(kafka_url: str, topic: str | None = None) -> list[DeadLetter]:
    """All dead letters there were at the start are with their groups again, each once, and gone from here.

    In the order of their partitions, so that versions of a key keep theirs. Whoever is interrupted has sent some that
    are still here: run it again, the inbox drops what comes twice. Those that cannot be redelivered stay. Gives what
    was sent. StreamError.
    """
    sent: list[DeadLetter] = []
    ends: dict[tuple[str, int], int] = {}
    stay: set[tuple[str, int]] = set()
    seen: set[tuple[str, tuple[str, str, str]]] = set()
    batch, size = list[DeadLetter](), 0
    async for letter in dead_letters(kafka_url, topic):
        at = (letter.topic, letter.partition)
        if not letter.redeliverable or at in stay:
            stay.add(at)  # nor can what stands behind it be deleted
        else:
            ends[at] = letter.offset + 1
        if not letter.redeliverable or (letter.group, letter.origin) in seen:
            continue
        seen.add((letter.group, letter.origin))
        batch.append(letter)
        size += len(letter.message.value or b"")
        if len(batch) >= _REDELIVER_AT_ONCE or size >= _BYTES_AT_ONCE:
            sent += await redeliver_these(kafka_url, batch)
            batch, size = [], 0
    sent += await redeliver_these(kafka_url, batch)
    await delete_before(kafka_url, ends)
    return sent


async def redeliver_these(kafka_url: str, letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """They are with their groups again, in their order, and here still; gives them. StreamError."""
    targets: dict[str, list[RawMessage]] = {}
    for letter in letters:
        targets.setdefault(redelivery_topic(letter.origin[0], letter.group), []).append(letter.message)
    for target, messages in targets.items():
        async with Publisher(kafka_url, client_id="dead-letters", topics=[target]) as publisher:
            await publisher.publish(target, messages)
    return list(letters)
