"""HTTP: routes that must have a policy, problem documents, and what every response carries.

A route is declared with its policy; `build_app` turns routes into a FastAPI application and refuses one without. The
caller is authenticated and authorised before the endpoint reads anything of the request.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common import metrics
from services.common.auth import Claims, TokenVerifier, require
from services.common.errors import DomainError, invalid

T = TypeVar("T")
log = structlog.get_logger()

BODY_BYTES_MAX: Final = 256 * 1024
DRAIN_BYTES_MAX: Final = 32 * 1024 * 1024  # read and thrown away after a refusal, so that the client gets to see it
SLOW_SECONDS: Final = 0.2  # the objective for a response
JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"
PROBLEM_TYPES: Final = "urn:problem:"  # RFC 9457, section 3.1.1: an identifier that needs no resolving

_TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z")  # W3C Trace Context
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")

Endpoint = Callable[[Request, Claims], Awaitable[Response]]
OpenEndpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Public:
    """Policy: no token is asked for."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Policy: a valid token that has one of `scopes`; any valid token when there are none."""

    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """An operation of the API. `openapi` is what its description says beyond what is said for all."""

    method: Literal["GET", "POST"]
    path: str
    endpoint: Endpoint | OpenEndpoint
    policy: Public | AnyOf
    summary: str
    tag: str
    openapi: dict[str, Any] = field(default_factory=dict)


class JsonResponse(Response):
    """A response whose bytes are made once, by orjson."""

    media_type = JSON

    def render(self, content: object) -> bytes:
        """JSON in UTF-8 (RFC 8259); bytes are taken as they are."""
        return content if isinstance(content, bytes) else orjson.dumps(content)


def problem(error: DomainError, instance: str) -> Response:
    """The problem document of `error` (RFC 9457); the same for the same refusal but for `instance`."""
    content = {
        "type": PROBLEM_TYPES + error.code,
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        "instance": instance,
        **error.extra,
    }
    return JsonResponse(content, status_code=error.status, headers=error.headers, media_type=PROBLEM)


async def read_json(request: Request, *, empty: object = None) -> Any:
    """The parsed body; `empty` when there is none and that is allowed.

    413 `body_too_large`, 415 `media_type`, 400 `malformed_json` (also too deep, a number no double holds, a lone
    surrogate, bytes that are not UTF-8).
    """
    body = bytearray()
    too_large = int(request.headers.get("content-length") or 0) > BODY_BYTES_MAX
    drained = 0
    async for chunk in request.stream():
        drained += len(chunk)
        too_large = too_large or drained > BODY_BYTES_MAX
        if not too_large:
            body += chunk
        elif drained > DRAIN_BYTES_MAX:
            break
    if too_large:
        raise DomainError(
            "body_too_large", 413, f"A body has at most {BODY_BYTES_MAX} bytes.", headers={"Connection": "close"}
        )
    if not body and empty is not None:
        return empty
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise DomainError("media_type", 415, f"Send {JSON}.", headers={"Accept-Post": JSON})
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DomainError("malformed_json", 400, f"The body is not JSON: {error.msg}.") from error


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], value: object) -> M:
    """`value` as a `model`. 422 `invalid` with the place and the reason of every fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        errors = [{"at": "/" + "/".join(map(str, fault["loc"])), "reason": fault["msg"]} for fault in faults[:20]]
        raise invalid("The request is not valid.", errors=errors) from None


def if_match_version(header: str | None) -> int | None:
    """The version in `If-Match` (RFC 9110, section 13.1.1), None without one; -1, which none is, for any other tag."""
    if header is None:
        return None
    match = re.fullmatch(r'"([1-9][0-9]{0,8})"', header.strip())
    return int(match[1]) if match else -1


def none_match(header: str | None, version: int) -> bool:
    """Whether `If-None-Match` (RFC 9110, section 13.1.2, weak comparison) holds a tag other than the version's."""
    if header is None:
        return True
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" not in tags and etag(version) not in tags


def etag(version: int) -> str:
    """The entity tag of a version."""
    return f'"{version}"'


class Writes:
    """Writes under way. A client that goes away cancels its request, never the write between BEGIN and COMMIT."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, write: Coroutine[Any, Any, T]) -> T:
        """What `write` gives. It runs to its end even when the caller is cancelled."""
        task = asyncio.create_task(write)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """None is under way afterwards."""
        while self._tasks:
            await asyncio.wait(self._tasks)


def build_app(
    *,
    title: str,
    description: str,
    routes: Sequence[Route],
    verifier: TokenVerifier,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> ASGIApp:
    """The application, every route behind its policy, described in OpenAPI 3.1 at /openapi.json and /docs."""
    app = FastAPI(title=title, description=description, version="1", lifespan=lifespan, redoc_url=None)
    app.add_exception_handler(HTTPException, _http_exception)
    for route in routes:
        app.add_api_route(
            route.path,
            _guarded(route, verifier),
            methods=[route.method],
            summary=route.summary,
            tags=[route.tag],
            operation_id=route.endpoint.__name__,
            response_class=Response,
            responses={},
            openapi_extra=_described(route),
        )
    _describe(app)
    refuse_without_policy(app.routes, routes)
    return Observed(app)


def refuse_without_policy(served: Sequence[BaseRoute], declared: Sequence[Route]) -> None:
    """RuntimeError when a path is served that no declared route (nor the documentation) stands behind."""
    known = {route.path for route in declared} | {"/openapi.json", "/docs", "/docs/oauth2-redirect"}
    strangers = [path for route in served if (path := getattr(route, "path", repr(route))) not in known]
    if strangers:
        raise RuntimeError(f"served without a policy: {strangers}")


def _guarded(route: Route, verifier: TokenVerifier) -> Callable[[Request], Awaitable[Response]]:
    policy, endpoint = route.policy, route.endpoint

    async def guarded(request: Request) -> Response:
        try:
            if isinstance(policy, Public):
                return await endpoint(request)  # type: ignore[call-arg] # a public endpoint takes no claims
            header = request.headers.get("authorization")
            claims = verifier.recall(header) or await verifier.verify(header)
            if policy.scopes:
                require(claims, *policy.scopes)
            return await endpoint(request, claims)  # type: ignore[call-arg] # and this one does
        except DomainError as error:
            return problem(error, request.url.path)

    return guarded


def _described(route: Route) -> dict[str, Any]:
    extra = dict(route.openapi)
    extra["security"] = [] if isinstance(route.policy, Public) else [{"oauth2": list(route.policy.scopes[:1])}]
    if isinstance(route.policy, AnyOf) and len(route.policy.scopes) > 1:
        extra["security"] = [{"oauth2": [scope]} for scope in route.policy.scopes]
    return extra


def _describe(app: FastAPI) -> None:
    """What FastAPI would say of a plain Request endpoint is replaced by what the routes say of themselves."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for operations in document["paths"].values():
            for operation in operations.values():
                if operation["responses"].get("200", {}).get("description") == "Successful Response":
                    del operation["responses"]["200"]
        return document

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend the document


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 # registered for nothing else
    codes = {404: "not_found", 405: "method_not_allowed"}
    detail = "There is no such resource, or it is not yours." if error.status_code == 404 else str(error.detail)
    refusal = DomainError(
        codes.get(error.status_code, "invalid"), error.status_code, detail, headers=dict(error.headers or {})
    )
    return problem(refusal, request.url.path)


class Observed:
    """Around the application: request id, trace context, timings, metrics, the headers of every response, and 500."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _text(headers.get(b"x-request-id"), _REQUEST_ID) or secrets.token_hex(8)
        traceparent = _text(headers.get(b"traceparent"), _TRACEPARENT) or _new_traceparent()
        scope.setdefault("state", {})["traceparent"] = traceparent
        timings = metrics.Timings()
        metrics.request_timings.set(timings)
        structlog.contextvars.bind_contextvars(request_id=request_id, traceparent=traceparent)
        started = time.perf_counter()
        status = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = message.setdefault("headers", [])
                sent.append((b"server-timing", timings.server_timing().encode()))
                sent.append((b"x-request-id", request_id.encode()))
                sent.append((b"x-content-type-options", b"nosniff"))
                if not any(name == b"cache-control" for name, _ in sent):
                    sent.append((b"cache-control", b"private, no-store"))
            await send(message)

        try:
            await self.app(scope, receive, send_with_headers)
        except Exception:
            log.exception("http.failed", method=scope["method"], path=scope["path"])
            if status:
                raise  # the response has begun; the server closes the connection
            failure = DomainError("internal", 500, "This is our fault, and it has been logged.")
            await problem(failure, scope["path"])(scope, receive, send_with_headers)
        finally:
            elapsed = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "none")
            metrics.http_request_seconds.labels(scope["method"], route, status).observe(elapsed)
            if elapsed > SLOW_SECONDS or status >= 500:
                log.warning(
                    "http.slow" if status < 500 else "http.error",
                    method=scope["method"],
                    route=route,
                    status=status,
                    seconds=round(elapsed, 4),
                    db_seconds=round(timings.db, 4),
                    pool_seconds=round(timings.pool, 4),
                )


def _text(value: bytes | None, pattern: re.Pattern[str]) -> str | None:
    text = value.decode("latin-1") if value else ""
    return text if pattern.match(text) else None


def _new_traceparent() -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
