"""What a payment provider is asked, and what it says, whichever it is. An adapter of one implements `Provider`.

An order has one payment at a provider: an authorisation, of which parts are captured, and of those parts refunded.
What the provider says is always the whole standing of that payment, so that answers, callbacks and look-ups may come
in any order and any number: whoever records them keeps the furthest.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol


class ProviderState(StrEnum):
    """Where a payment is at the provider."""

    PROCESSING = "processing"  # it will be authorised or declined; a callback or a look-up tells
    AUTHORIZED = "authorized"
    DECLINED = "declined"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True)
class Charge:
    """What is to be authorised for an order; `amount` is in minor units of `currency`."""

    order_id: str
    amount: int
    currency: str
    payment_method: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The payment of an order as its provider has it. Amounts are minor units of `currency`, and only grow."""

    order_id: str
    reference: str  # the provider's id of it
    state: ProviderState
    currency: str
    authorized_amount: int
    captured_amount: int
    refunded_amount: int
    failure: str | None = None  # why it was declined


class ProviderError(Exception):
    """No answer, or none that says what happened: look the payment up before the step is tried again."""


class StepRefusedError(Exception):
    """The provider will not do this step, however often it is asked; nothing has happened."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class CapturePutOffError(Exception):
    """The provider captures once only: it has noted the amount, and takes it with the final capture.

    The step is done, and the payment stands as it stood; the same key is noted once.
    """


class Provider(Protocol):
    """A payment provider. Each step has an idempotency key: the same key again does nothing twice.

    Each raises ProviderError and StepRefusedError; a payment that is declined is no error but a standing.
    """

    name: str

    async def authorize(self, charge: Charge, *, key: str) -> Standing:
        """`charge.amount` is held, declined, or being processed."""

    async def capture(self, standing: Standing, amount: int, *, final: bool, key: str) -> Standing:
        """`amount` of what is held is taken; with `final` what is then left of the authorisation is released.

        CapturePutOffError when it will be taken with the final one; that has then more than its own `amount`.
        """

    async def void(self, standing: Standing, *, key: str) -> Standing:
        """Nothing is held any more; only before anything was captured."""

    async def refund(self, standing: Standing, amount: int, *, key: str) -> Standing:
        """`amount` of what was captured is given back."""

    async def look_up(self, charge: Charge, reference: str | None, *, key: str) -> Standing | None:
        """The payment of the order as it stands now, None when the provider has none; `key` is its authorisation's."""

    def standings(self, since: datetime) -> AsyncIterator[Standing]:
        """Every payment the provider has made or changed since, for the reconciler."""

    async def aclose(self) -> None:
        """Its connections are closed."""
