"""Customers, with every response held against the OpenAPI document."""

import pytest

from services.cli import openapi
from tests.contracts.description import Description
from tests.customers import Customers


@pytest.fixture(scope="session")
def description() -> Description:
    """The OpenAPI document."""
    return Description(openapi.CUSTOMERS)


@pytest.fixture
async def customers(customers: Customers, description: Description) -> Customers:
    """A response that is not as described fails the test."""
    customers.client.event_hooks["response"].append(description.check)
    return customers
