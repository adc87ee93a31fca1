"""EXPLAIN on the test's database."""

import asyncpg
import pytest

from loadtests.explain import Explain


@pytest.fixture
def explain(owner: "asyncpg.Connection[asyncpg.Record]") -> Explain:
    """Call it with a statement and its values."""
    return Explain(owner)
