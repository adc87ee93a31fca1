"""The smallest consumer: what the inbox lets through is written to a table, in the same transaction."""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import asyncpg
import pytest

from services.common import stream
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.inbox import Inbox, Verdict, arrival
from services.common.stream import Message, Received
from tests.consuming import Group

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
POISON = b"poison"


@dataclass
class Ledger:
    """A consumer's effect."""

    database: Database
    owner: Owner
    inbox: Inbox = field(default_factory=lambda: Inbox("orders", "ledger"))
    handled: list[tuple[str, int]] = field(default_factory=list)  # committed, also what was stale

    async def handle(self, topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        """What is new of `messages` is in the table."""
        for message in messages:
            if message.value == POISON:
                raise PoisonError(message, "it is poison")
        arrivals = [arrival(message) for message in messages]
        async with self.database.transaction() as connection:
            verdicts = await self.inbox.judge(connection, topic, arrivals)
            new = [one for one, verdict in zip(arrivals, verdicts, strict=True) if verdict is not Verdict.STALE]
            await connection.executemany(
                "INSERT INTO orders.ledger (key, version) VALUES ($1, $2)", [(one.key, one.version) for one in new]
            )
        self.handled += [(one.key, one.version) for one in arrivals]
        return Counter(verdicts)

    async def versions(self, key: str) -> list[int]:
        """What was written of `key`, in the order in which it was."""
        rows = await self.owner.fetch("SELECT version FROM orders.ledger WHERE key = $1 ORDER BY id", key)
        return [row["version"] for row in rows]

    async def count(self) -> int:
        """Of all that was written."""
        return int(await self.owner.fetchval("SELECT count(*) FROM orders.ledger"))


@pytest.fixture
async def ledger(database_url: str, owner: Owner) -> AsyncIterator[Ledger]:
    """An empty one."""
    await owner.execute("CREATE TABLE orders.ledger (id BIGSERIAL PRIMARY KEY, key TEXT, version BIGINT)")
    database = Database(database_url, application_name="test", size_min=0, size_max=4)
    await database.open()
    yield Ledger(database, owner)
    await database.close()


@pytest.fixture
async def topic(kafka_url: str) -> str:
    """A topic of the test's own."""
    name = f"test.{secrets.token_hex(4)}"
    await stream.ensure_topic(kafka_url, name)
    return name


@pytest.fixture
def group(kafka_url: str, topic: str, ledger: Ledger) -> Group:
    """A group that reads `topic` into `ledger`."""
    return Group(kafka_url, [topic], ledger.handle)


def numbered(key: str, *versions: int, value: bytes = b"{}") -> list[Message]:
    """Messages of `key`."""
    return [
        Message(key.encode(), value, [("ce_type", b"counted"), ("ce_sequence", b"%020d" % version)])
        for version in versions
    ]
