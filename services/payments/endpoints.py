"""HTTP only: callbacks of the provider, and how the process is. `routes` says which path each of these answers."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog
from fastapi import Request, Response
from prometheus_client import Counter

from services.common.db import Database
from services.common.db_errors import TransientError, retried
from services.common.errors import DomainError, invalid, not_found, unavailable
from services.common.http_request import read_body
from services.common.http_response import JsonResponse
from services.payments import callbacks, commands, queries

log = structlog.get_logger()
payment_callbacks_total = Counter("payment_callbacks_total", "Callbacks, by what became of them", ["outcome"])


@dataclass(slots=True)
class Context:
    """What the endpoints of this process work with. `hastened` is called when a step became due."""

    database: Database
    provider: str
    secret: str
    hastened: Callable[[], None]
    degraded: Callable[[], list[str]] = list


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the process
    return found


async def post_callback(request: Request) -> Response:
    """POST /callbacks/{provider}: a hint that the payment of an order has changed.

    Nothing of it is believed but which order it is about, and that only when it is signed: the order's step, if one is
    open, is due now, and the provider's answer to a look-up tells the truth. 401 `unsigned`, 404, 422, 503.
    """
    at = context(request)
    if request.path_params["provider"] != at.provider:
        raise not_found()
    body = await read_body(request)
    if not callbacks.is_genuine(at.provider, request.headers, body, at.secret):
        payment_callbacks_total.labels("unsigned").inc()
        log.warning("payments.callback_unsigned")
        raise DomainError("unsigned", 401, "The signature is missing, too old, or not by whoever knows the secret.")
    try:
        order_id = callbacks.order_of(at.provider, body)
        outcome = "ignored" if order_id is None else await _hasten(at, order_id)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        payment_callbacks_total.labels("invalid").inc()
        log.warning("payments.callback_invalid", error=repr(error))
        raise invalid("The callback does not say which order it is about.") from error
    payment_callbacks_total.labels(outcome).inc()
    return JsonResponse({"status": "ok"})


async def _hasten(at: Context, order_id: str) -> str:
    if not await retried(partial(commands.hasten, at.database, order_id)):
        return "nothing_open"
    at.hastened()
    return "hastened"


async def get_health(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz: callbacks can be taken; what is not as it should be stands in `warnings`."""
    at = context(request)
    try:
        await queries.oldest_due_seconds(at.database)
    except TransientError as error:
        raise unavailable("The database does not answer.") from error
    return JsonResponse({"status": "ok", "warnings": at.degraded()})
