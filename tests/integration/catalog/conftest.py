"""The catalogue, with every response held against the OpenAPI document."""

import pytest

from services.cli import openapi
from tests.catalog import Catalogue
from tests.contracts.description import Description


@pytest.fixture(scope="session")
def description() -> Description:
    """The OpenAPI document."""
    return Description(openapi.CATALOG)


@pytest.fixture
async def catalogue(catalogue: Catalogue, description: Description) -> Catalogue:
    """The catalogue; a response that is not as described fails the test."""
    catalogue.client.event_hooks["response"].append(description.check)
    return catalogue
