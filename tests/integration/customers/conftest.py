"""Customers, with every response held against the OpenAPI document."""

from functools import partial
from typing import TypeAlias

import asyncpg
import pytest

from services.cli import openapi
from services.common import caches, db
from services.common.cache import breaker
from tests.contracts.description import Description
from tests.customers import Customers

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is slow just now is no cache that is away, and no lock that is not granted."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))
    monkeypatch.setattr(db, "SESSION", {**db.SESSION, "lock_timeout": "5s"})
    monkeypatch.setattr(db, "ACQUIRE_TIMEOUT_SECONDS", 10.0)


@pytest.fixture(scope="session")
def description() -> Description:
    """The OpenAPI document."""
    return Description(openapi.CUSTOMERS)


@pytest.fixture
async def customers(customers: Customers, description: Description) -> Customers:
    """A response that is not as described fails the test."""
    customers.client.event_hooks["response"].append(description.check)
    return customers
