"""The Stripe adapter through Stripe's library, on answers and errors as Stripe documents them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from services.common import clock, ids
from services.payments.provider import (
    CapturePutOffError,
    Charge,
    ProviderError,
    ProviderState,
    Standing,
    StepRefusedError,
)
from services.payments.providers import opened
from services.payments.stripe import StripeProvider
from tests.scripted import CUT, HANGS, Scripted, scripted_server

ORDERED_AT = clock.now()
ORDER = ids.to_text(ids.new_order_key(UUID(int=1), ORDERED_AT).order_id)
KEY = f"{ORDER}:1:authorize"
CHARGE = Charge(ORDER, 1000, "USD", "pm_card_visa")
HELD = Standing(ORDER, "pi_1", ProviderState.AUTHORIZED, "USD", 1000, 0, 0)
CREATE, CONFIRM, RETRIEVE = (
    "POST /v1/payment_intents",
    "POST /v1/payment_intents/pi_1/confirm",
    "GET /v1/payment_intents/pi_1",
)

Answer = tuple[int, dict[str, Any]]


def intent(status: str, *, received: int = 0, capturable: int | None = None, refunded: int = 0, **other: Any) -> Answer:
    """A PaymentIntent of 1000, as far as anybody reads it; with a charge once the bank has agreed."""
    agreed = status in {"requires_capture", "succeeded"} or "agreed" in other
    charge = {
        "id": "ch_1",
        "object": "charge",
        "status": "succeeded",
        "amount": 1000,
        "amount_captured": received,
        "amount_refunded": refunded,
        "payment_method_details": {
            "type": "card",
            "card": {"multicapture": {"status": other.pop("multicapture", "available")}},
        },
    }
    other.pop("agreed", None)
    return 200, {
        "id": "pi_1",
        "object": "payment_intent",
        "status": status,
        "amount": 1000,
        "amount_received": received,
        "amount_capturable": (1000 - received if status == "requires_capture" else 0)
        if capturable is None
        else capturable,
        "currency": "usd",
        "latest_charge": charge if agreed else None,
        "last_payment_error": None,
        "metadata": {"order_id": ORDER},
        **other,
    }


MADE = intent("requires_payment_method")


def failed(status: int, type_: str, **told: Any) -> Answer:
    """An error as in the API reference, section Errors."""
    return status, {"error": {"type": type_, "message": "what it says to a person", **told}}


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Scripted]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def stripe(server: Scripted) -> AsyncIterator[Scripted]:
    server.answers.clear()
    server.asked.clear()
    yield server
    assert server.answers == [], "not all of it was asked for"


@pytest.fixture
async def provider(server: Scripted) -> AsyncIterator[StripeProvider]:
    provider = StripeProvider("sk_test_123", url=server.url, timeout_seconds=10)
    yield provider
    await provider.aclose()


async def test_an_intent_is_made_without_a_charge_and_confirmed_under_a_key_of_its_own(
    provider: StripeProvider, stripe: Scripted
) -> None:
    stripe.answers += [MADE, intent("requires_capture")]
    assert await provider.authorize(CHARGE, key=KEY) == HELD
    made, confirmed = stripe.asked
    assert (made.what, made.key) == (CREATE, KEY)
    assert made.told == {
        "amount": "1000",
        "currency": "usd",
        "capture_method": "manual",
        "allowed_payment_method_types[0]": "card",
        "payment_method_options[card][request_multicapture]": "if_available",
        "metadata[order_id]": ORDER,
    }
    assert (confirmed.what, confirmed.key) == (CONFIRM, f"{KEY}:confirm")
    assert (confirmed.told["payment_method"], confirmed.told["error_on_requires_action"]) == ("pm_card_visa", "true")


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (failed(402, "card_error", code="card_declined", decline_code="insufficient_funds"), "insufficient_funds"),
        (failed(402, "card_error", code="expired_card"), "expired_card"),
        (failed(402, "card_error", code="authentication_required"), "authentication_required"),
        (failed(400, "invalid_request_error", code="resource_missing", param="payment_method"), "resource_missing"),
    ],
)
async def test_what_the_buyer_pays_with_may_be_declined(
    provider: StripeProvider, stripe: Scripted, error: Answer, failure: str
) -> None:
    stripe.answers += [MADE, error]
    declined = Standing(ORDER, "pi_1", ProviderState.DECLINED, "USD", 0, 0, 0, failure)
    assert await provider.authorize(CHARGE, key=KEY) == declined


async def test_a_declined_payment_is_found_declined(provider: StripeProvider, stripe: Scripted) -> None:
    told = {"type": "card_error", "code": "card_declined", "decline_code": "lost_card"}
    stripe.answers += [intent("requires_payment_method", last_payment_error=told)]
    found = await provider.look_up(CHARGE, "pi_1", key=KEY)
    assert found == Standing(ORDER, "pi_1", ProviderState.DECLINED, "USD", 0, 0, 0, "lost_card")


@pytest.mark.parametrize(
    ("answer", "error", "reason"),
    [
        (failed(400, "invalid_request_error", code="amount_too_small", param="amount"), StepRefusedError, "too_small"),
        (failed(400, "idempotency_error"), StepRefusedError, "key_reused"),
        (failed(400, "invalid_request_error"), StepRefusedError, "what it says"),
        (failed(401, "invalid_request_error"), ProviderError, "AuthenticationError"),
        (failed(403, "invalid_request_error"), ProviderError, "PermissionError"),
        (failed(409, "idempotency_error", code="idempotency_key_in_use"), ProviderError, "409"),
        (failed(429, "invalid_request_error", code="lock_timeout"), ProviderError, "RateLimitError"),
        (failed(500, "api_error"), ProviderError, "500"),
        ((502, {}), ProviderError, "502"),
        ((CUT, {}), ProviderError, "Connection"),
        ((HANGS, {}), ProviderError, "Connection"),
    ],
)
async def test_an_error_is_a_refusal_or_says_nothing_and_is_asked_once(
    stripe: Scripted, answer: Answer, error: type[Exception], reason: str
) -> None:
    provider = StripeProvider("sk_test_123", url=stripe.url, timeout_seconds=1 if answer[0] == HANGS else 10)
    stripe.answers += [answer]
    with pytest.raises(error, match=reason):
        await provider.authorize(CHARGE, key=KEY)
    assert len(stripe.asked) == 1, "whoever asks tries again, not the library"
    await provider.aclose()


async def test_a_charge_whose_answer_was_lost_is_found_and_not_made_again(
    provider: StripeProvider, stripe: Scripted
) -> None:
    stripe.answers += [MADE, (CUT, {})]
    with pytest.raises(ProviderError):
        await provider.authorize(CHARGE, key=KEY)
    stripe.answers += [MADE, intent("requires_capture")]
    assert await provider.look_up(CHARGE, None, key=KEY) == HELD
    assert [(one.what, one.key) for one in stripe.asked[2:]] == [(CREATE, KEY), (RETRIEVE, None)]


async def test_an_intent_that_was_never_confirmed_is_no_payment(provider: StripeProvider, stripe: Scripted) -> None:
    stripe.answers += [MADE, intent("requires_payment_method")]
    assert await provider.look_up(CHARGE, None, key=KEY) is None


async def test_a_day_later_it_is_searched_for_as_its_key_may_be_forgotten(stripe: Scripted) -> None:
    provider = StripeProvider(
        "sk_test_123", url=stripe.url, timeout_seconds=10, now=lambda: ORDERED_AT + timedelta(hours=24)
    )
    other = intent("requires_capture", metadata={"order_id": "another"}, id="pi_9")[1]
    stripe.answers += [(200, {"object": "search_result", "data": [other, MADE[1], intent("requires_capture")[1]]})]
    assert await provider.look_up(CHARGE, None, key=KEY) == HELD
    assert stripe.asked[0].told["query"] == f'metadata["order_id"]:"{ORDER}"'
    await provider.aclose()


@pytest.mark.parametrize("status", ["processing", "requires_action"])
async def test_what_is_not_yet_known_is_being_processed(
    provider: StripeProvider, stripe: Scripted, status: str
) -> None:
    stripe.answers += [MADE, intent(status)]
    assert await provider.authorize(CHARGE, key=KEY) == replace(
        HELD, state=ProviderState.PROCESSING, authorized_amount=0
    )


async def test_a_part_is_captured_and_the_rest_still_held_where_that_can_be(
    provider: StripeProvider, stripe: Scripted
) -> None:
    stripe.answers += [intent("requires_capture"), intent("requires_capture", received=300)]
    taken = await provider.capture(HELD, 300, final=False, key=f"{ORDER}:2:capture")
    assert taken == replace(HELD, captured_amount=300)
    asked = stripe.asked[1]
    assert (asked.what, asked.key) == ("POST /v1/payment_intents/pi_1/capture", f"{ORDER}:2:capture")
    assert (asked.told["amount_to_capture"], asked.told["final_capture"]) == ("300", "false")


async def test_where_it_can_be_captured_once_only_parts_are_noted_and_taken_with_the_last(
    provider: StripeProvider, stripe: Scripted
) -> None:
    noted: dict[str, str] = {"order_id": ORDER}
    for number, amount in ((2, 300), (3, 200), (2, 300)):  # the second is asked for again
        once = intent("requires_capture", multicapture="unavailable", metadata=noted)
        stripe.answers += [once, once]
        with pytest.raises(CapturePutOffError):
            await provider.capture(HELD, amount, final=False, key=f"{ORDER}:{number}:capture")
        ((name, value),) = [told for told in stripe.asked[-1].told.items() if told[0].startswith("metadata")]
        assert stripe.asked[-1].what == "POST /v1/payment_intents/pi_1"
        noted = noted | {name.removeprefix("metadata[").removesuffix("]"): value}
    assert max(map(len, noted)) <= 40, "Stripe's limit of a name"
    stripe.answers += [
        intent("requires_capture", multicapture="unavailable", metadata=noted),
        intent("succeeded", received=1000),
    ]
    taken = await provider.capture(HELD, 500, final=True, key=f"{ORDER}:4:capture")
    assert taken == replace(HELD, captured_amount=1000)
    asked = stripe.asked[-1]
    assert (asked.told["amount_to_capture"], asked.told.get("final_capture")) == ("1000", None)


async def test_what_is_released_is_not_refunded_though_stripe_counts_it_so(
    provider: StripeProvider, stripe: Scripted
) -> None:
    stripe.answers += [intent("succeeded", received=700, refunded=300)]
    assert await provider.look_up(CHARGE, "pi_1", key=KEY) == replace(HELD, captured_amount=700)
    stripe.answers += [(200, {"id": "re_1", "object": "refund"}), intent("succeeded", received=700, refunded=550)]
    back = await provider.refund(HELD, 250, key=f"{ORDER}:5:refund")
    assert back == replace(HELD, captured_amount=700, refunded_amount=250)
    asked = stripe.asked[1]
    assert (asked.what, asked.key) == ("POST /v1/refunds", f"{ORDER}:5:refund")
    assert asked.told == {"payment_intent": "pi_1", "amount": "250", "metadata[order_id]": ORDER}


async def test_a_void_releases_all_and_may_be_asked_for_twice(provider: StripeProvider, stripe: Scripted) -> None:
    voided = replace(HELD, state=ProviderState.VOIDED)
    canceled = intent("canceled", refunded=1000, agreed=True)
    stripe.answers += [canceled]
    assert await provider.void(HELD, key=f"{ORDER}:2:void") == voided
    again = failed(400, "invalid_request_error", code="payment_intent_unexpected_state")
    stripe.answers += [again, canceled]
    assert await provider.void(HELD, key=f"{ORDER}:3:void") == voided
    stripe.answers += [again, intent("succeeded", received=1000)]
    with pytest.raises(StepRefusedError, match="payment_intent_unexpected_state"):
        await provider.void(HELD, key=f"{ORDER}:4:void")


async def test_payments_of_orders_are_listed_over_pages(provider: StripeProvider, stripe: Scripted) -> None:
    since = datetime(2026, 11, 1, tzinfo=UTC)
    first, second = intent("requires_capture")[1], intent("succeeded", received=1000, id="pi_2")[1]
    nobodys = intent("succeeded", metadata={})[1]
    page = {"object": "list", "url": "/v1/payment_intents"}
    stripe.answers += [
        (200, {**page, "data": [first, nobodys, MADE[1]], "has_more": True}),
        (200, {**page, "data": [second], "has_more": False}),
    ]
    listed = [one async for one in provider.standings(since)]
    assert listed == [HELD, replace(HELD, reference="pi_2", captured_amount=1000)]
    assert stripe.asked[0].told["created[gte]"] == str(int(since.timestamp()))
    assert stripe.asked[1].told["starting_after"] == "pi_1"


async def test_currencies_that_stripe_counts_otherwise_are_refused_unasked(
    provider: StripeProvider, stripe: Scripted
) -> None:
    for currency in ("ISK", "UGX", "MGA"):
        with pytest.raises(StepRefusedError, match="currency_unsupported"):
            await provider.authorize(replace(CHARGE, currency=currency), key=KEY)
    assert stripe.asked == []


async def test_a_provider_is_opened_by_its_name_or_says_what_it_lacks() -> None:
    for name in ("sandbox", "stripe"):
        provider = opened(name, url="http://127.0.0.1:1", stripe_key="sk_test_123", timeout_seconds=1)
        assert provider.name == name
        await provider.aclose()
    with pytest.raises(ValueError, match="secret key"):
        opened("stripe", url="", timeout_seconds=1)
    with pytest.raises(ValueError, match="sandbox and stripe"):
        opened("barter", url="", timeout_seconds=1)
