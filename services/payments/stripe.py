"""Stripe as a provider: an order's payment is a PaymentIntent with manual capture.

It is made without its payment method under the step's key, then confirmed with it under a key of its own: so a look-up
that repeats the making finds the one intent of the order, or makes one that holds nothing. Sources: Stripe's API
reference (PaymentIntents, Refunds, Errors, Idempotent requests) and "Capture a payment multiple times".
"""

import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Final

import stripe

from services.common import clock, ids
from services.payments.provider import (
    CapturePutOffError,
    Charge,
    ProviderError,
    ProviderState,
    Standing,
    StepRefusedError,
)

# Stripe counts these in other units than ISO 4217 does ("Supported currencies", special cases).
UNLIKE_ISO_4217: Final = frozenset({"ISK", "MGA", "UGX"})
KEYS_KEPT: Final = timedelta(hours=23)  # Stripe forgets a key after a day at the earliest
_ORDER: Final = "order_id"  # names of metadata
_PUT_OFF: Final = "put_off_"
_EXPAND: Final = "latest_charge"
_PAGE: Final = 100


class StripeProvider:
    """Stripe's account of `api_key`; `url` replaces its API in tests. See `Provider`."""

    name = "stripe"

    def __init__(
        self, api_key: str, *, timeout_seconds: float, url: str | None = None, now: clock.Clock = clock.now
    ) -> None:
        self._now = now
        self._http = stripe.HTTPXClient(timeout=timeout_seconds)
        client = stripe.StripeClient(
            api_key,
            http_client=self._http,
            max_network_retries=0,  # whoever asks tries again, and looks up first
            base_addresses={"api": url} if url else {},
        )
        self._intents, self._refunds = client.v1.payment_intents, client.v1.refunds

    async def authorize(self, charge: Charge, *, key: str) -> Standing:
        """See `Provider`. A payment method that Stripe does not know, or that wants its owner asked, is declined."""
        with _translated():
            intent = await self._made(charge, key)
            try:
                intent = await self._intents.confirm_async(
                    intent.id,
                    {"payment_method": charge.payment_method, "error_on_requires_action": True, "expand": [_EXPAND]},
                    {"idempotency_key": f"{key}:confirm"},
                )
            except stripe.CardError as error:
                return _declined(charge, intent.id, _reason(error.error))
            except stripe.InvalidRequestError as error:
                if error.param == "payment_method":
                    return _declined(charge, intent.id, error.code or "payment_method_invalid")
                raise
        return _known(intent, charge.order_id)

    async def capture(self, standing: Standing, amount: int, *, final: bool, key: str) -> Standing:
        """See `Provider`. Where Stripe captures once only, what is not the final capture is noted in the metadata."""
        with _translated():
            intent = await self._retrieved(standing.reference)
            options: stripe.RequestOptions = {"idempotency_key": key}
            if final:
                told = intent.metadata.to_dict()
                noted = sum(int(amount) for name, amount in told.items() if name.startswith(_PUT_OFF))
                intent = await self._intents.capture_async(
                    intent.id, {"amount_to_capture": amount + noted, "expand": [_EXPAND]}, options
                )
            elif _captures_again(intent):
                intent = await self._intents.capture_async(
                    intent.id, {"amount_to_capture": amount, "final_capture": False, "expand": [_EXPAND]}, options
                )
            else:
                name = _PUT_OFF + hashlib.sha256(key.encode()).hexdigest()[:16]  # names have at most 40 characters
                await self._intents.update_async(intent.id, {"metadata": {name: str(amount)}}, options)
                raise CapturePutOffError(f"{amount} are taken with the final capture")
        return _known(intent, standing.order_id)

    async def void(self, standing: Standing, *, key: str) -> Standing:
        """See `Provider`."""
        with _translated():
            try:
                intent = await self._intents.cancel_async(
                    standing.reference, {"expand": [_EXPAND]}, {"idempotency_key": key}
                )
            except stripe.InvalidRequestError as error:
                if error.code != "payment_intent_unexpected_state":
                    raise
                intent = await self._retrieved(standing.reference)
                if intent.status != "canceled":
                    raise
        return _known(intent, standing.order_id)

    async def refund(self, standing: Standing, amount: int, *, key: str) -> Standing:
        """See `Provider`."""
        with _translated():
            await self._refunds.create_async(
                {"payment_intent": standing.reference, "amount": amount, "metadata": {_ORDER: standing.order_id}},
                {"idempotency_key": key},
            )
            return _known(await self._retrieved(standing.reference), standing.order_id)

    async def look_up(self, charge: Charge, reference: str | None, *, key: str) -> Standing | None:
        """See `Provider`. Without `reference` it may leave an intent that holds nothing."""
        with _translated():
            if reference is not None:
                return _standing(await self._retrieved(reference), charge.order_id)
            asked_at = ids.order_key(ids.from_text(charge.order_id)).created_at
            if self._now() - asked_at > KEYS_KEPT and (found := await self._searched(charge)):
                return found
            intent = await self._made(charge, key)
            return _standing(await self._retrieved(intent.id), charge.order_id)

    async def standings(self, since: datetime) -> AsyncIterator[Standing]:
        """See `Provider`. Those made since, newest first: Stripe does not list by change."""
        with _translated():
            page = await self._intents.list_async(
                {"created": {"gte": int(since.timestamp())}, "limit": _PAGE, "expand": [f"data.{_EXPAND}"]}
            )
            async for intent in page.auto_paging_iter():
                order_id = intent.metadata.to_dict().get(_ORDER)
                if order_id and (standing := _standing(intent, order_id)) is not None:
                    yield standing

    async def aclose(self) -> None:
        """See `Provider`."""
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def _made(self, charge: Charge, key: str) -> stripe.PaymentIntent:
        """The intent as it was when it was made under `key`, now or before: the answer is the first one's."""
        if charge.currency in UNLIKE_ISO_4217:
            raise StepRefusedError("currency_unsupported")
        return await self._intents.create_async(
            {
                "amount": charge.amount,
                "currency": charge.currency.lower(),
                "capture_method": "manual",
                "allowed_payment_method_types": ["card"],
                "payment_method_options": {"card": {"request_multicapture": "if_available"}},
                "metadata": {_ORDER: charge.order_id},
            },
            {"idempotency_key": key},
        )

    async def _retrieved(self, reference: str) -> stripe.PaymentIntent:
        return await self._intents.retrieve_async(reference, {"expand": [_EXPAND]})

    async def _searched(self, charge: Charge) -> Standing | None:
        """By the metadata. Found a minute after its making at the latest, by the books; these are a day old."""
        page = await self._intents.search_async(
            {"query": f'metadata["{_ORDER}"]:"{charge.order_id}"', "expand": [f"data.{_EXPAND}"], "limit": _PAGE}
        )
        for intent in page.data:
            of_order = intent.metadata.to_dict().get(_ORDER) == charge.order_id
            if of_order and (standing := _standing(intent, charge.order_id)) is not None:
                return standing
        return None


def _standing(intent: stripe.PaymentIntent, order_id: str) -> Standing | None:
    """What the intent, its charge expanded, says of the payment; None while the buyer's bank was not asked."""
    failure = None
    match intent.status:
        case "requires_payment_method" if intent.last_payment_error is not None:
            state, failure = ProviderState.DECLINED, _reason(intent.last_payment_error)
        case "requires_payment_method" | "requires_confirmation":
            return None
        case "requires_action" | "processing":
            state = ProviderState.PROCESSING
        case "requires_capture" | "succeeded":
            state = ProviderState.AUTHORIZED
        case "canceled":
            state = ProviderState.VOIDED
        case unknown:
            raise ProviderError(f"{intent.id} is {unknown}")
    charge = intent.latest_charge if isinstance(intent.latest_charge, stripe.Charge) else None
    held = state is ProviderState.AUTHORIZED or (
        state is ProviderState.VOIDED and charge is not None and charge.status == "succeeded"
    )
    return Standing(
        order_id=order_id,
        reference=intent.id,
        state=state,
        currency=intent.currency.upper(),
        authorized_amount=intent.amount if held else 0,
        captured_amount=intent.amount_received,
        refunded_amount=_refunded(intent, charge) if charge else 0,
        failure=failure,
    )


def _refunded(intent: stripe.PaymentIntent, charge: stripe.Charge) -> int:
    """Stripe counts what was held and is released as refunded, too."""
    released = intent.amount - intent.amount_received - intent.amount_capturable
    return max(0, charge.amount_refunded - released)


def _known(intent: stripe.PaymentIntent, order_id: str) -> Standing:
    standing = _standing(intent, order_id)
    if standing is None:
        raise ProviderError(f"{intent.id} is {intent.status} after it was confirmed")
    return standing


def _declined(charge: Charge, reference: str, failure: str) -> Standing:
    return Standing(charge.order_id, reference, ProviderState.DECLINED, charge.currency, 0, 0, 0, failure)


def _captures_again(intent: stripe.PaymentIntent) -> bool:
    """Whether the card and the account allow several captures of this payment. What is not told is no attribute."""
    charge = intent.latest_charge
    details = charge.payment_method_details if isinstance(charge, stripe.Charge) else None
    multicapture = getattr(getattr(details, "card", None), "multicapture", None)
    return getattr(multicapture, "status", None) == "available"


def _reason(error: stripe.ErrorObject | stripe.PaymentIntent.LastPaymentError | None) -> str:
    """The bank's reason before Stripe's."""
    return getattr(error, "decline_code", None) or getattr(error, "code", None) or "declined"


@contextmanager
def _translated() -> Iterator[None]:
    """Errors of the library are those of `Provider`."""
    try:
        yield
    except stripe.IdempotencyError as error:
        raise StepRefusedError("key_reused") from error
    except (stripe.CardError, stripe.InvalidRequestError) as error:
        raise StepRefusedError(error.code or str(error.user_message)) from error
    except stripe.StripeError as error:  # no answer, 401, 403, 409, 429, 5xx: nothing that another try cannot mend
        raise ProviderError(repr(error)) from error
