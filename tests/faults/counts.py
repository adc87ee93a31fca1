"""How far consumers are that tell it to nobody but the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

EVERY_SECONDS = 0.2


@dataclass
class Counts:
    """What they have done so far; while the database is away it stands still."""

    copied: int = 0
    audited: int = 0
    paid: int = 0

    async def count(self, postgres_url: str) -> None:
        """Until cancelled."""
        while True:
            try:
                connection = await asyncpg.connect(postgres_url, timeout=5)
                try:
                    while True:
                        self.copied = await connection.fetchval("SELECT sum(version)::bigint FROM orders.products")
                        self.audited = await connection.fetchval("SELECT count(*) FROM audit.applied")
                        self.paid = await connection.fetchval(
                            "SELECT coalesce(sum(version), 0)::bigint FROM payments.payments"
                        )
                        await asyncio.sleep(EVERY_SECONDS)
                finally:
                    connection.terminate()
            # The last is of a connection asked between the server's last words and its end.
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                await asyncio.sleep(EVERY_SECONDS)


@asynccontextmanager
async def counting(postgres_url: str) -> AsyncIterator[Counts]:
    """They are counted until the end of the block."""
    counts = Counts()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(counts.count(postgres_url))
        yield counts
        task.cancel()
