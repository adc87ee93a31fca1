"""The Stripe adapter against Stripe's own mock, which refuses what the API does not know."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from services.common import ids
from services.payments.provider import CapturePutOffError, Charge, ProviderState, Standing, StepRefusedError
from services.payments.stripe import StripeProvider
from tests.stripe_mock import running_stripe_mock

_OLD = datetime(2025, 1, 1, tzinfo=UTC)  # keys of then are forgotten, so it is searched for, too
ORDER = ids.to_text(ids.new_order_key(UUID(int=1), _OLD).order_id)
CHARGE = Charge(ORDER, 6497, "USD", "pm_card_visa")
KEY = f"{ORDER}:1:authorize"


@pytest.fixture(scope="module")
async def url() -> AsyncIterator[str]:
    async with running_stripe_mock() as url:
        yield url


@pytest.fixture
async def provider(url: str) -> AsyncIterator[StripeProvider]:
    provider = StripeProvider("sk_test_123", url=url, timeout_seconds=30)
    yield provider
    await provider.aclose()


@pytest.fixture
def standing() -> Standing:
    return Standing(ORDER, "pi_123", ProviderState.AUTHORIZED, "USD", 6497, 0, 0)


async def test_every_step_is_one_that_the_api_knows(provider: StripeProvider, standing: Standing) -> None:
    """What it answers is made up, but every path and parameter is compared with Stripe's specification."""
    authorized = await provider.authorize(CHARGE, key=KEY)
    assert (authorized.order_id, authorized.currency) == (ORDER, "USD")
    assert authorized.reference.startswith("pi_")
    assert (await provider.capture(standing, 6497, final=True, key=f"{ORDER}:2:capture")).reference == "pi_123"
    with pytest.raises(CapturePutOffError):  # its payment has no card that can be captured again
        await provider.capture(standing, 1, final=False, key=f"{ORDER}:3:capture")
    assert (await provider.void(standing, key=f"{ORDER}:4:void")).reference == "pi_123"
    assert (await provider.refund(standing, 100, key=f"{ORDER}:5:refund")).reference == "pi_123"


async def test_every_look_up_is_one_that_the_api_knows(provider: StripeProvider) -> None:
    found = await provider.look_up(CHARGE, "pi_123", key=KEY)
    assert found is not None
    assert found.reference == "pi_123"
    assert await provider.look_up(CHARGE, None, key=KEY) is not None
    assert [one async for one in provider.standings(datetime(2026, 1, 1, tzinfo=UTC))] == [], "they are nobody's orders"


@pytest.mark.parametrize("amount", ["many", None])
async def test_what_the_api_does_not_know_is_refused(provider: StripeProvider, amount: Any) -> None:
    with pytest.raises(StepRefusedError, match="validation"):
        await provider.authorize(Charge(ORDER, amount, "USD", "pm_card_visa"), key=KEY)
