"""What the payments sandbox may be asked to do with a payment, and what that makes of it."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import Field

from services.common.errors import DomainError
from services.common.money import AMOUNT_MAX
from services.common.schemas import Body, Currency, ShortText

Payment = Mapping[str, Any]
Columns = Mapping[str, Any]


class Authorization(Body):
    """Hold `amount`, in minor units of `currency`."""

    order_id: ShortText
    amount: int = Field(ge=1, le=AMOUNT_MAX)
    currency: Currency
    payment_method: ShortText


class Capture(Body):
    """Take `amount` of what is held; with `final` release the rest."""

    amount: int = Field(ge=1, le=AMOUNT_MAX)
    final: bool


class Void(Body):
    """Release what is held, before anything of it was taken."""


class Refund(Body):
    """Give back `amount` of what was taken."""

    amount: int = Field(ge=1, le=AMOUNT_MAX)


def captured(payment: Payment, asked: Mapping[str, Any]) -> Columns:
    """The columns of `payment` after it."""
    _held(payment)
    if asked["amount"] > payment["authorized_amount"] - payment["captured_amount"]:
        raise DomainError("amount_too_large", 409, "More than is held.")
    return {"captured_amount": payment["captured_amount"] + asked["amount"], "released": asked["final"]}


def voided(payment: Payment, _: Mapping[str, Any]) -> Columns:
    """The columns of `payment` after it; voiding it again changes nothing."""
    if payment["state"] == "voided":
        return {}
    _held(payment)
    if payment["captured_amount"]:
        raise DomainError("captured", 409, "Some of it was captured: refund it.")
    return {"state": "voided", "released": True}


def refunded(payment: Payment, asked: Mapping[str, Any]) -> Columns:
    """The columns of `payment` after it."""
    if asked["amount"] > payment["captured_amount"] - payment["refunded_amount"]:
        raise DomainError("amount_too_large", 409, "More than was captured and not yet refunded.")
    return {"refunded_amount": payment["refunded_amount"] + asked["amount"]}


def _held(payment: Payment) -> None:
    if payment["state"] != "authorized" or payment["released"]:
        raise DomainError("not_held", 409, f"Nothing is held: it is {payment['state']}.")


# By the last part of their path.
STEPS: Final[Mapping[str, tuple[type[Body], Callable[[Payment, Mapping[str, Any]], Columns]]]] = {
    "capture": (Capture, captured),
    "void": (Void, voided),
    "refund": (Refund, refunded),
}
