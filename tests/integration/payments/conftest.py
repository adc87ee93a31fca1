"""payments-worker's parts on a real database, as its role."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest

from services.common import ids
from services.common.breaker import Breaker
from services.common.db import Database
from services.common.stream import Message
from services.payments import commands
from services.payments.intake import Intake
from services.payments.provider import CapturePutOffError, Provider, StepRefusedError
from services.payments.repository import Claim
from services.payments.runner import Runner
from services.payments.sandbox import SandboxProvider
from tests.conftest import AsRole
from tests.order_events import as_received
from tests.sandbox import Sandbox, running_sandbox

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LEASE_SECONDS = 30.0


@dataclass
class Books:
    """What the worker has written, and how it is written."""

    database: Database
    owner: Owner
    intake: Intake

    async def take(self, *messages: Message) -> dict[str, int]:
        """The events have been consumed; gives the outcomes."""
        return dict(await self.intake.handle("orders", as_received(*messages)))

    async def claim(self, limit: int = 100) -> list[Claim]:
        """All steps that are due are ours."""
        return await commands.claim(self.database, limit=limit, lease_seconds=LEASE_SECONDS)

    async def payment(self, order_id: str) -> dict[str, Any]:
        """Its row, {} when there is none."""
        found = await self.owner.fetchrow(
            "SELECT * FROM payments.payments WHERE order_id = $1", ids.from_text(order_id)
        )
        return dict(found or {})

    async def steps(self, order_id: str) -> list[tuple[int, str, str]]:
        """Number, kind and state of each."""
        rows = await self.owner.fetch(
            "SELECT number, kind, state FROM payments.steps WHERE order_id = $1 ORDER BY number",
            ids.from_text(order_id),
        )
        return [tuple(row) for row in rows]

    async def step(self, order_id: str, number: int = 1) -> dict[str, Any]:
        """The row of one."""
        return dict(
            await self.owner.fetchrow(
                "SELECT *, due_at <= now() AS due FROM payments.steps WHERE order_id = $1 AND number = $2",
                *(ids.from_text(order_id), number),
            )
            or {}
        )

    async def events(self, order_id: str) -> list[dict[str, Any]]:
        """What waits in the outbox, in its order."""
        rows = await self.owner.fetch(
            "SELECT *, data::text AS data FROM payments.outbox WHERE aggregate_id = $1 ORDER BY slice, position",
            ids.from_text(order_id),
        )
        return [{**dict(row), "data": orjson.loads(row["data"])} for row in rows]

    async def told(self, order_id: str) -> list[str]:
        """The types of these, which have the versions 1..n."""
        events = await self.events(order_id)
        assert [event["version"] for event in events] == list(range(1, len(events) + 1))
        return [event["type"].removeprefix("payment.") for event in events]


@pytest.fixture
async def books(as_role: AsRole, owner: Owner) -> AsyncIterator[Books]:
    """On the test's database."""
    database = Database(as_role("payments_worker"), application_name="payments-worker", size_max=16)
    await database.open()
    yield Books(database, owner, Intake(database, "sandbox", taken=lambda: None))
    await database.close()


@pytest.fixture(scope="session")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sandbox]:
    """A payments-sandbox that calls nobody back."""
    async with running_sandbox(tmp_path_factory.mktemp("sandbox")) as started:
        yield started


@pytest.fixture
async def provider(sandbox: Sandbox) -> AsyncIterator[SandboxProvider]:
    """Its adapter."""
    opened = SandboxProvider(sandbox.url, timeout_seconds=5)
    yield opened
    await opened.aclose()


OpenRunner = Callable[..., Runner]


@pytest.fixture
def open_runner(books: Books, provider: SandboxProvider) -> OpenRunner:
    """Call for a runner with a breaker of its own; what fails is tried again at once."""

    def opened(*, deadline_seconds: float = 5.0, failures: int = 100, asked: Provider = provider) -> Runner:
        breaker = Breaker(
            asked.name,
            deadline_seconds=deadline_seconds,
            failures=failures,
            healthy=(StepRefusedError, CapturePutOffError),
        )
        return Runner(
            books.database,
            asked,
            breaker,
            published=lambda: None,
            at_once=8,
            lease_seconds=LEASE_SECONDS,
            poll_seconds=0.05,
            retry_seconds_min=0.001,
            retry_seconds_max=0.05,
        )

    return opened
