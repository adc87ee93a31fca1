"""What payments-worker serves: every path, and who may use it. Callbacks bring a signature in place of a token."""

from typing import Final

from services.common.http import Public, Route
from services.common.openapi import BODY, UNAVAILABLE, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer
from services.payments.endpoints import get_health, get_readiness, post_callback
from services.payments.schemas import CallbackAnswer

_CALLBACK: Final = Operation(
    CallbackAnswer,
    refusals={
        "unsigned": (401, "The signature is missing, too old, or not by whoever knows the secret."),
        **BODY,
        **UNAVAILABLE,
    },
    description="JSON, signed as the provider does it: the sandbox in `Payment-Signature`, Stripe in"
    " `Stripe-Signature`. It is read for the order it is about and nothing else: the provider is asked for the truth.",
)
_READY: Final = Operation(ReadinessAnswer, refusals=UNAVAILABLE)

ROUTES: Final = (
    Route("POST", "/callbacks/{provider}", post_callback, Public(), "A payment has changed", "callbacks", _CALLBACK),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can callbacks be taken", "health", _READY),
)
