"""What payments-worker serves: every path, and who may use it. Callbacks bring a signature in place of a token."""

from typing import Final

from services.common.http import Public, Route
from services.common.openapi import BODY, UNAVAILABLE, Header, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer
from services.payments.endpoints import SIGNATURE, get_health, get_readiness, post_callback
from services.payments.schemas import CallbackAnswer

_SIGNED: Final = Header(
    SIGNATURE,
    'The time in Unix seconds, and the HMAC-SHA256 of "<time>.<body>" with the secret we share.',
    f"t=1795371410,v1={'0' * 64}",
    required=True,
    refusals={"unsigned": (401, "The signature is missing, too old, or not by whoever knows the secret.")},
)
_CALLBACK: Final = Operation(
    CallbackAnswer,
    headers=(_SIGNED,),
    refusals={**BODY, **UNAVAILABLE},
    description="JSON with the `order_id`; what else it says is not read. The provider is asked for the truth.",
)
_READY: Final = Operation(ReadinessAnswer, refusals=UNAVAILABLE)

ROUTES: Final = (
    Route("POST", "/callbacks/{provider}", post_callback, Public(), "A payment has changed", "callbacks", _CALLBACK),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can callbacks be taken", "health", _READY),
)
