"""What a payment may do: pure decisions, no clock, no I/O.

An event of an order asks for a step; a provider's standing moves the payment; a step is done when the standing says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, assert_never

from services.contracts.orders import EventType, OrderStatus
from services.contracts.payments import Payment, PaymentEventType, PaymentState
from services.payments.provider import ProviderState, Standing


class StepKind(StrEnum):
    """What a provider is asked to do."""

    AUTHORIZE = "authorize"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"


class StepState(StrEnum):
    """Where a step is. All but `open` are its end."""

    OPEN = "open"
    DONE = "done"
    DROPPED = "dropped"  # the order was cancelled before the provider was asked
    REFUSED = "refused"  # the provider will not do it; a person has to see why


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to be done at the provider, asked for by version `number` of the order's events.

    `amount` is minor units of the payment's currency, 0 for a void; with `final` what is left after it is released.
    """

    number: int
    kind: StepKind
    amount: int
    final: bool = False

    def key(self, order_id: str) -> str:
        """Its idempotency key: the same for the same step, whoever asks and however often."""
        return f"{order_id}:{self.number}:{self.kind}"


FIRST: Final = 1  # the version of order.placed, hence the number of the authorisation


def authorization_key(order_id: str) -> str:
    """The key under which an order's payment was authorised, if it ever was."""
    return Step(FIRST, StepKind.AUTHORIZE, 0).key(order_id)


def payment_of_order(event: Mapping[str, Any], provider: str) -> Payment | None:
    """The payment that a parsed order.placed asks for, None when it is on account. KeyError, TypeError, ValueError."""
    placed = event["data"]["change"]
    method = placed["payment_method"]
    if method is None:
        return None
    return Payment(
        order_id=event["order_id"],
        user_id=placed["user_id"],
        status=PaymentState.REQUESTED,
        provider=provider,
        reference=None,
        payment_method=method,
        currency=placed["currency"],
        amount=_amount(placed["total_amount"]),
        authorized_amount=0,
        captured_amount=0,
        refunded_amount=0,
        failure=None,
        version=0,
        updated_at=event["occurred_at"],
    )


def step_of_event(event: Mapping[str, Any]) -> Step | None:
    """What a parsed event asks for, if its order has a payment. KeyError, TypeError, ValueError for what is no event.

    Shipments and returns of before there were payments do not say their amount: those orders are on account.
    """
    version, change = event["version"], event["data"]["change"]
    if event["type"] in {EventType.SHIPPED, EventType.RETURNED} and "amount" not in change:
        return None
    match event["type"]:
        case EventType.PLACED:
            return Step(version, StepKind.AUTHORIZE, _amount(change["total_amount"]))
        case EventType.SHIPPED:
            final = event["data"]["after"]["status"] == OrderStatus.SHIPPED
            return Step(version, StepKind.CAPTURE, _amount(change["amount"]), final)
        case EventType.CANCELLED:
            return Step(version, StepKind.VOID, 0)
        case EventType.RETURNED:
            return Step(version, StepKind.REFUND, _amount(change["amount"]))
        case _:
            return None


def _amount(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"no amount: {value!r}")
    return value


def standing_without_asking(payment: Payment, step: Step, *, cancelled: bool) -> Standing | None:
    """How the payment stands after `step` when the provider need not be asked; None when it has to be.

    `cancelled`: the order was cancelled, and nobody has asked for the authorisation yet.
    """
    match step.kind:
        case StepKind.AUTHORIZE if cancelled:
            return standing_of(payment, ProviderState.VOIDED)
        case StepKind.AUTHORIZE:
            return standing_of(payment, ProviderState.AUTHORIZED) if payment.amount == 0 else None
        case StepKind.VOID if payment.status == PaymentState.FAILED:
            return standing_of(payment)
        case StepKind.VOID:
            return standing_of(payment, ProviderState.VOIDED) if payment.reference is None else None
        case StepKind.CAPTURE | StepKind.REFUND:
            return standing_of(payment) if step.amount == 0 else None
        case _:
            assert_never(step.kind)


def standing_of(payment: Payment, state: ProviderState | None = None) -> Standing:
    """The payment as we know it, in the words of a provider; in `state`, when that is known better."""
    known = {
        PaymentState.REQUESTED: ProviderState.PROCESSING,
        PaymentState.AUTHORIZED: ProviderState.AUTHORIZED,
        PaymentState.FAILED: ProviderState.DECLINED,
        PaymentState.VOIDED: ProviderState.VOIDED,
    }
    return Standing(
        order_id=payment.order_id,
        reference=payment.reference or "",
        state=state or known[PaymentState(payment.status)],
        currency=payment.currency,
        authorized_amount=payment.authorized_amount,
        captured_amount=payment.captured_amount,
        refunded_amount=payment.refunded_amount,
        failure=payment.failure,
    )


def is_done(step: Step, standing: Standing, base_amount: int) -> bool:
    """Whether the payment stands as `step` wanted, or can never again.

    `base_amount` is what had been captured (or refunded) before the step was first tried.
    """
    match step.kind:
        case StepKind.AUTHORIZE:
            return standing.state is not ProviderState.PROCESSING
        case StepKind.VOID:
            return standing.state in {ProviderState.VOIDED, ProviderState.DECLINED}
        case StepKind.CAPTURE:
            return standing.captured_amount >= base_amount + step.amount
        case StepKind.REFUND:
            return standing.refunded_amount >= base_amount + step.amount
        case _:
            assert_never(step.kind)


Move = tuple[PaymentEventType, Payment]


def moved(payment: Payment, standing: Standing, *, at: str) -> list[Move]:
    """The visible changes from `payment` to `standing`, in their order, each with the payment after it; [] for none.

    Amounts only grow and states only go forward, so standings may come in any order and any number: an older one
    changes nothing. What a failed payment is told afterwards changes nothing either; the reconciler sees it.
    """
    moves: list[Move] = []
    known = replace(payment, reference=payment.reference or standing.reference or None)

    def move(type_: PaymentEventType, **changed: Any) -> None:
        before = moves[-1][1] if moves else known
        moves.append((type_, replace(before, version=before.version + 1, updated_at=at, **changed)))

    if payment.status == PaymentState.FAILED:
        return []
    if payment.status == PaymentState.REQUESTED:
        match standing.state:
            case ProviderState.PROCESSING:
                return []
            case ProviderState.DECLINED:
                move(PaymentEventType.FAILED, status=PaymentState.FAILED, failure=standing.failure or "declined")
                return moves
            case ProviderState.AUTHORIZED:
                move(
                    PaymentEventType.AUTHORIZED,
                    status=PaymentState.AUTHORIZED,
                    authorized_amount=standing.authorized_amount,
                )
            case ProviderState.VOIDED:
                pass
            case _:
                assert_never(standing.state)
    if standing.captured_amount > payment.captured_amount:
        move(PaymentEventType.CAPTURED, captured_amount=standing.captured_amount)
    if standing.state is ProviderState.VOIDED and payment.status != PaymentState.VOIDED:
        authorized = max(payment.authorized_amount, standing.authorized_amount)
        move(PaymentEventType.VOIDED, status=PaymentState.VOIDED, authorized_amount=authorized)
    if standing.refunded_amount > payment.refunded_amount:
        move(PaymentEventType.REFUNDED, refunded_amount=standing.refunded_amount)
    return moves


def is_needed(step: Step, status: str) -> bool:
    """Whether a payment in that state has anything to be done by `step`: one that has failed holds nothing."""
    return not (step.kind is StepKind.VOID and status == PaymentState.FAILED)


def standing_of_refused(payment: Payment, step: Step, reason: str) -> Standing | None:
    """How the payment stands when the provider refuses the step: an authorisation is as good as declined."""
    if step.kind is not StepKind.AUTHORIZE:
        return None
    return replace(standing_of(payment, ProviderState.DECLINED), failure=reason)
