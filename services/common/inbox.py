"""The inbox: what a consumer has applied already, kept in the same transaction as the effect (idempotent consumer).

A topic brings a message again after every crash and rebalance. The version of its key, in the order of the key's
partition, tells what is new: the next one applies, an older one is dropped, and a gap is for the consumer to judge.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common.db import Database, Statement, WriteConnection
from services.common.handle import Gap, GapError, PoisonError
from services.common.stream import Received

KEY_LENGTH_MAX: Final = 200  # characters: a key has to fit into an index
VERSION_MAX: Final = 2**63 - 1  # of a bigint
SEQUENCE_DIGITS: Final = 20
FORGET_BATCH: Final = 5_000
# Longer than a topic keeps a message (7 days), shorter than an inbox keeps a row (8 days at least).
REMEMBERED: Final = timedelta(hours=180)


class Verdict(StrEnum):
    """How a message's version stands to the last one of its key."""

    NEXT = "next"
    STALE = "stale"  # applied before, or overtaken by what was
    GAP = "gap"  # newer, and versions between are missing; a first one that is not 1 is a gap too


@dataclass(frozen=True, slots=True)
class Arrival:
    """What the headers and key of a message say (CloudEvents 1.0, binary mode); its body is not needed for it."""

    key: str
    version: int
    type: str


def arrival(message: Received) -> Arrival:
    """Key, version and type of `message`. PoisonError when one of them is missing or malformed."""
    try:
        key = (message.key or b"").decode()
        type_ = message.headers.get("ce_type", b"").decode()
        sequence = message.headers.get("ce_sequence", b"").decode()
    except UnicodeDecodeError as error:
        raise PoisonError(message, f"its key or a header is no UTF-8: {error}") from error
    if not 1 <= len(key) <= KEY_LENGTH_MAX or "\0" in key:
        raise PoisonError(message, "it has no key of 1 to 200 characters")
    if not type_:
        raise PoisonError(message, "it has no ce_type")
    if not (len(sequence) == SEQUENCE_DIGITS and sequence.isascii() and sequence.isdigit()):
        raise PoisonError(message, f"ce_sequence is not {SEQUENCE_DIGITS} digits: {sequence!r}")
    version = int(sequence)
    if not 1 <= version <= VERSION_MAX:
        raise PoisonError(message, f"ce_sequence is no version: {sequence}")
    return Arrival(key, version, type_)


def happened_at(message: Received) -> datetime:
    """The time of the event (CloudEvents 1.0, `time`). PoisonError when there is none, or it has no offset."""
    try:
        at = datetime.fromisoformat(message.headers.get("ce_time", b"").decode())
    except ValueError as error:
        raise PoisonError(message, f"ce_time is no time: {error}") from error
    if at.tzinfo is None:
        raise PoisonError(message, f"ce_time has no offset: {at}")
    return at


class Inbox:
    """The inbox of `consumer` in table `<schema>.inbox`."""

    def __init__(self, schema: str, consumer: str) -> None:
        self._consumer = consumer
        # Primary key. Keys are locked in their order, so that two processes never wait for each other in a circle.
        self.advance = _statement(
            "inbox_advance",
            f"""
INSERT INTO {schema}.inbox AS i (consumer, topic, key, last_version, updated_at)
SELECT :consumer, :topic, n.key, n.version, now()
FROM unnest(:keys, :versions) AS n (key, version)
ORDER BY n.key
ON CONFLICT (consumer, topic, key) DO UPDATE SET last_version = excluded.last_version, updated_at = now()
WHERE i.last_version < excluded.last_version
RETURNING new.key, coalesce(old.last_version, 0) AS last_version
""",  # noqa: S608 # the schema is a constant of ours
        )
        # Index: updated_at. Oldest first, a batch at a time.
        self.delete = _statement(
            "inbox_delete",
            f"""
DELETE FROM {schema}.inbox i
USING (
    SELECT consumer, topic, key FROM {schema}.inbox
    WHERE updated_at < :older_than ORDER BY updated_at LIMIT {FORGET_BATCH}
) old
WHERE i.consumer = old.consumer AND i.topic = old.topic AND i.key = old.key AND i.updated_at < :older_than
RETURNING 1
""",  # noqa: S608 # the same, and a constant
        )

    async def judge(self, connection: WriteConnection, topic: str, arrivals: Sequence[Arrival]) -> list[Verdict]:
        """The verdict on each arrival; the inbox has the newest version of every key, once the transaction commits.

        `arrivals` are of one topic, each key in its order, of known types or not. In the transaction of the effect,
        and before it: the rows stay locked until its end, so a second process that has the same messages waits here,
        and then finds them stale. READ COMMITTED is enough, as ON CONFLICT judges the row it has locked (PostgreSQL,
        chapter 13.2.1). One round trip.
        """
        return [verdict for verdict, _ in await self._judged(connection, topic, arrivals)]

    async def judge_changes(
        self,
        connection: WriteConnection,
        topic: str,
        messages: Sequence[Received],
        *,
        known_since: datetime | None = None,
    ) -> list[bool]:
        """Which of `messages` to apply, for a consumer to whom each version says only what changed; the rest is stale.

        Of a key that the inbox does not know, what happened before `known_since` is stale too: its row was forgotten,
        not its effect. Say it where an effect must not come twice after that. Otherwise as `judge`. PoisonError;
        GapError when one is not the next version of its key: let it out of the transaction, so that the consumer fills
        the gaps and hands all of it over again.
        """
        arrivals = [arrival(message) for message in messages]
        judged = await self._judged(connection, topic, arrivals)
        gaps = [
            Gap(message, arrived.key, last, arrived.version)
            for message, arrived, (verdict, last) in zip(messages, arrivals, judged, strict=True)
            if verdict is Verdict.GAP
        ]
        if gaps:
            raise GapError(gaps)
        unknown = {one.key for one, (_, last) in zip(arrivals, judged, strict=True) if last == 0}
        return [
            verdict is Verdict.NEXT
            and not (known_since is not None and one.key in unknown and happened_at(message) < known_since)
            for message, one, (verdict, _) in zip(messages, arrivals, judged, strict=True)
        ]

    async def _judged(
        self, connection: WriteConnection, topic: str, arrivals: Sequence[Arrival]
    ) -> list[tuple[Verdict, int]]:
        """Each verdict, and the last version before it."""
        newest: dict[str, int] = {}
        for one in arrivals:
            newest[one.key] = max(one.version, newest.get(one.key, 0))
        rows = await self.advance.rows(
            connection, consumer=self._consumer, topic=topic, keys=list(newest), versions=list(newest.values())
        )
        known: dict[str, int] = {row["key"]: row["last_version"] for row in rows}
        judged = []
        for one in arrivals:
            last = known.get(one.key, VERSION_MAX)  # a key that was not advanced has nothing new
            if one.version <= last:
                judged.append((Verdict.STALE, last))
                continue
            judged.append((Verdict.NEXT if one.version == last + 1 else Verdict.GAP, last))
            known[one.key] = one.version
        return judged

    async def forget(self, database: Database, *, older_than: datetime) -> int:
        """No row of the table, whoever's, is unchanged since before; gives how many went. A transaction a batch.

        Afterwards a message as old is new again, which is why an effect should be one that never goes back by itself.
        """
        deleted = 0
        while True:
            rows = await database.rows(self.delete, older_than=older_than)
            deleted += len(rows)
            if len(rows) < FORGET_BATCH:
                return deleted


def _statement(name: str, sql: str) -> Statement:
    types: dict[str, sa.types.TypeEngine[Any]] = {
        "keys": ARRAY(sa.Text()),
        "versions": ARRAY(sa.BigInteger()),
        "older_than": sa.TIMESTAMP(timezone=True),
    }
    clause = sa.text(sql)
    names = clause._bindparams
    return Statement(name, clause.bindparams(*(sa.bindparam(n, type_=types.get(n, sa.Text())) for n in names)))
