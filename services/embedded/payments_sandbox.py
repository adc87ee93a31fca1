"""Process `payments-sandbox`: a payment provider for development and tests, over HTTP, with a durable ledger.

It moves no money and asks nobody who they are, so it is for a developer's machine and nowhere else. What becomes of a
payment, its method's name says (`outcomes.py`, docs/payments-providers.md).
"""

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Self

import structlog
import uvicorn
from pydantic import AwareDatetime, Field, SecretStr, TypeAdapter, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from services.common import clock
from services.common.errors import DomainError, invalid, not_found
from services.common.http_response import problem
from services.common.log import configure
from services.common.schemas import Body
from services.common.settings import ProcessSettings
from services.embedded.callbacks import Clockwork, now_ms
from services.embedded.ledger import PAGE_MAX, Answer, Asked, Ledger
from services.embedded.steps import STEPS, Authorization

_BODY_BYTES_MAX: Final = 8 * 1024  # the largest has a few hundred
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_STOP_SECONDS: Final = 1  # who was left hanging is then cut off
_IDLE_SECONDS: Final = 75  # over what clients keep idle connections for: who closes first must not be whom they ask
_CURSOR: Final = re.compile(r"([0-9]{1,15})\.(pay_[0-9a-f]{24})", re.ASCII)
_TIME: Final = TypeAdapter(AwareDatetime)
_LIMIT: Final = TypeAdapter(Annotated[int, Field(ge=1, le=PAGE_MAX)])

_log = structlog.get_logger()


class SandboxSettings(ProcessSettings):
    """What `payments-sandbox` may be told besides."""

    port: int = Field(default=8005, ge=0, le=65535, description="port the HTTP server binds")
    home: Path = Field(default=Path(".local"), description="directory whose `payments-sandbox/` holds the ledger")
    callback_url: str = Field(
        default="", pattern=r"^(https?://[^\s]+)?$", description="where callbacks go; none are made when it is empty"
    )
    callback_secret: SecretStr = Field(default=SecretStr(""), description="what callbacks are signed with")

    @model_validator(mode="after")
    def _signed(self) -> Self:
        if self.callback_url and not self.callback_secret.get_secret_value():
            raise ValueError("callback_secret is needed with callback_url: nobody takes an unsigned callback")
        return self


class _Cut(Response):
    """An answer that begins, and then the connection is closed."""

    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


def create_app(settings: SandboxSettings) -> Starlette:
    """The application; its lifespan opens the ledger, settles payments and sends callbacks."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ledger = Ledger(settings.home / "payments-sandbox" / "ledger.sqlite3", callbacks=bool(settings.callback_url))
        clockwork = Clockwork(ledger, settings.callback_url, settings.callback_secret.get_secret_value().encode())
        app.state.ledger, app.state.clockwork = ledger, clockwork
        running = asyncio.create_task(clockwork.run(), name="clockwork")
        running.add_done_callback(_end_with)
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
            ledger.close()

    return Starlette(
        routes=[
            Route("/v1/payments", post_payment, methods=["POST"]),
            Route("/v1/payments", get_payments),
            Route("/v1/payments/{reference}", get_payment),
            Route("/v1/payments/{reference}/{step}", post_step, methods=["POST"]),
            Route("/healthz", get_health),
        ],
        lifespan=lifespan,
        exception_handlers={DomainError: _answer_refusal},
    )


async def get_health(_: Request) -> JSONResponse:
    """The process serves."""
    return JSONResponse({"status": "ok"})


async def post_payment(request: Request) -> Response:
    """A payment is authorised, declined or being processed."""
    asked = await _asked(request, "authorize", Authorization)
    answer = _ledger(request).authorize(asked)
    return await _answered(request, "authorize", asked, answer)


async def post_step(request: Request) -> Response:
    """Some of a payment is captured or refunded, or all of it voided."""
    reference, step = request.path_params["reference"], request.path_params["step"]
    if step not in STEPS:
        raise not_found("There is no such step.")
    body, decide = STEPS[step]
    asked = await _asked(request, f"{step} {reference}", body)
    answer = _ledger(request).change(asked, reference, lambda payment: decide(payment, asked.body))
    return await _answered(request, step, asked, answer)


async def get_payment(request: Request) -> JSONResponse:
    """The payment as it stands."""
    return JSONResponse(_ledger(request).payment(request.path_params["reference"]))


async def get_payments(request: Request) -> JSONResponse:
    """Those of `order_id`, oldest first; or, page by page, those changed since `changed_since`, the last one last."""
    try:
        return JSONResponse(_listed(_ledger(request), request.query_params))
    except ValidationError as error:
        raise invalid(
            f"Give order_id, cursor, or changed_since (RFC 3339 with an offset), and limit <= {PAGE_MAX}."
        ) from error


def _listed(ledger: Ledger, told: Mapping[str, str]) -> dict[str, object]:
    if order_id := told.get("order_id"):
        return {"data": ledger.of_order(order_id), "next_cursor": None}
    limit = _LIMIT.validate_strings(told.get("limit", str(PAGE_MAX)))
    if cursor := told.get("cursor"):
        found = _CURSOR.fullmatch(cursor)
        if not found:
            raise DomainError("bad_cursor", 400, "The cursor is none of ours.")
        since_ms, after = int(found[1]), found[2]
    else:
        since_ms, after = clock.to_ms(_TIME.validate_python(told.get("changed_since"))), ""
    page = ledger.changed(since_ms, after, limit)
    last = page[-1] if len(page) == limit else None
    at_ms = clock.to_ms(datetime.fromisoformat(last["updated_at"])) if last else 0
    return {"data": page, "next_cursor": f"{at_ms}.{last['reference']}" if last else None}


def main() -> None:
    """Serve until SIGTERM or Ctrl-C."""
    settings = SandboxSettings()
    configure("payments-sandbox", settings.log_level)
    app = create_app(settings)
    _log.info("payments_sandbox_starting", host=settings.host, port=settings.port, callbacks=settings.callback_url)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
        timeout_keep_alive=_IDLE_SECONDS,
    )


def _ledger(request: Request) -> Ledger:
    ledger: Ledger = request.app.state.ledger
    ledger.settle(now_ms())  # whoever asks sees what is true now
    return ledger


async def _asked(request: Request, step: str, model: type[Body]) -> Asked:
    key = request.headers.get("idempotency-key", "")
    if not _KEY.fullmatch(key):
        raise DomainError("key_missing", 400, "Idempotency-Key has to be 1 to 255 visible characters.")
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _BODY_BYTES_MAX:
            raise DomainError("body_too_large", 413, f"The body has more than {_BODY_BYTES_MAX} bytes.")
    try:
        body = model.model_validate_json(bytes(content))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise invalid(f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from error
    return Asked(key, step, body.model_dump(), now_ms())


async def _answered(request: Request, step: str, asked: Asked, answer: Answer) -> Response:
    """The answer, unless the payment's outcome is that the first one is not to arrive."""
    request.app.state.clockwork.wake()
    _log.info("sandbox.step", step=step, key=asked.key, first=answer.first)
    if answer.first and step == "authorize" and answer.outcome.hangs:
        while (await request.receive())["type"] != "http.disconnect":
            pass
    if answer.first and step in answer.outcome.lost:
        return _Cut()
    return Response(answer.content, media_type="application/json")


async def _answer_refusal(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, DomainError)  # noqa: S101  Starlette types handlers for any exception
    _log.info("sandbox.refused", path=request.url.path, code=refusal.code, detail=refusal.detail)
    return problem(refusal, request.url.path)


def _end_with(clockwork: "asyncio.Task[None]") -> None:
    """A sandbox that neither settles nor calls back is ended, so that it is seen and started again."""
    if not clockwork.cancelled():
        _log.error("sandbox.clockwork_failed", exc_info=clockwork.exception())
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
