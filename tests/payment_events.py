"""What payments-worker says on Kafka, without it: payment events as its relay publishes them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import orjson

from services.common import clock, ids
from services.common.stream import Message, Received
from services.contracts import envelope
from services.contracts.payments import Payment, PaymentEventType, PaymentState

TRACE = f"00-{'1' * 32}-{'2' * 16}-01"


def payment(order: Mapping[str, Any], status: PaymentState, *amounts: int, version: int = 1, **more: Any) -> Payment:
    """Of `order` as the API shows it. `amounts` are authorized (by default all of it, unless it failed), captured and
    refunded; `more` replaces any member.
    """
    whole: int = order["total_amount"] if status in (PaymentState.AUTHORIZED, PaymentState.VOIDED) else 0
    authorized, captured, refunded = amounts + (whole, 0, 0)[len(amounts) :]
    told: dict[str, Any] = {
        "order_id": order["order_id"],
        "user_id": order["user_id"],
        "status": status.value,
        "provider": "sandbox",
        "reference": "pay_1",
        "payment_method": order["payment_method"],
        "currency": order["currency"],
        "amount": order["total_amount"],
        "authorized_amount": authorized,
        "captured_amount": captured,
        "refunded_amount": refunded,
        "failure": "card_declined" if status is PaymentState.FAILED else None,
        "version": version,
        "updated_at": clock.to_text(clock.now()),
    }
    return Payment(**{**told, **more})


def told(of: Payment, *, type_: str = PaymentEventType.AUTHORIZED, headers: dict[str, bytes] | None = None) -> Message:
    """The event of that payment. Its type tells what is new, and nobody needs it, as the payment tells all."""
    event_id, now = ids.to_text(ids.new_id(clock.now())), clock.to_text(clock.now())
    value = {
        "event_id": event_id,
        "order_id": of.order_id,
        "version": of.version,
        "type": type_,
        "occurred_at": now,
        "actor": "process:payments-worker",
        "data": {"payment": asdict(of)},
    }
    made = envelope.headers(
        event_id=event_id,
        type_=type_,
        source=envelope.PAYMENTS_SOURCE,
        subject=of.order_id,
        time=now,
        version=of.version,
        traceparent=TRACE,
    )
    return Message(of.order_id.encode(), orjson.dumps(value), list({**dict(made), **(headers or {})}.items()))


def as_received(*messages: Message) -> list[Received]:
    """As they come in one partition."""
    return [
        Received(0, offset, message.key, message.value, dict(message.headers), 0)
        for offset, message in enumerate(messages)
    ]
