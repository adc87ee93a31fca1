"""Payment events. An order has at most one payment; each event carries all of it, so any newer version says all."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class PaymentEventType(StrEnum):
    """Types a consumer may meet. Consumers ignore what they do not know."""

    AUTHORIZED = "payment.authorized"
    FAILED = "payment.failed"
    CAPTURED = "payment.captured"
    VOIDED = "payment.voided"
    REFUNDED = "payment.refunded"


class PaymentState(StrEnum):
    """Where the authorisation of a payment is; how much of it was captured and refunded is told by the amounts."""

    REQUESTED = "requested"
    AUTHORIZED = "authorized"
    FAILED = "failed"
    VOIDED = "voided"


@dataclass(frozen=True, slots=True)
class Payment:
    """The payment of an order. Amounts are minor units of `currency`; `updated_at` is RFC 3339 text in UTC.

    `amount` is what is to be authorised, the order's total; `reference` is the provider's id of the payment. A payment
    is `voided` with nothing authorised when its order was cancelled before the provider was asked.
    """

    order_id: str
    user_id: str
    status: str
    provider: str
    reference: str | None
    payment_method: str
    currency: str
    amount: int
    authorized_amount: int
    captured_amount: int
    refunded_amount: int
    failure: str | None
    version: int
    updated_at: str


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """One change of the payment of an order; versions run 1..n. `data` is `{"payment": the payment after it}`."""

    event_id: str
    order_id: str
    version: int
    type: str
    occurred_at: str
    actor: str
    data: Mapping[str, Any]


_MEMBERS = tuple(f.name for f in fields(Payment))


def payment_of(event: Mapping[str, Any]) -> Payment:
    """The payment that a parsed event carries; unknown members are ignored. KeyError when one is missing."""
    payment = event["data"]["payment"]
    return Payment(**{name: payment[name] for name in _MEMBERS})
