"""HTTP: routes that must have a policy, problem documents, and what every response carries.

A route is declared with its policy; `build_app` turns routes into a FastAPI application and refuses one without. The
caller is authenticated and authorised before the endpoint reads anything of the request.
"""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from typing import Any, Final, Literal, TypeVar
from urllib.parse import quote

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import Message, Receive, Scope, Send

from services.common import metrics, openapi
from services.common.auth import Claims, TokenVerifier, require
from services.common.errors import DomainError, invalid
from services.common.log import request_context
from services.common.openapi import JSON, PROBLEM
from services.contracts.envelope import TRACEPARENT

T = TypeVar("T")
log = structlog.get_logger()

BODY_BYTES_MAX: Final = 256 * 1024
DRAIN_BYTES_MAX: Final = 32 * 1024 * 1024  # read and thrown away after a refusal, so that the client gets to see it
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a client may invent others
SLOW_SECONDS: Final = 0.2  # the objective for a response

HEADERS: Final = "headers"  # in the state of a request's scope: {name in lower case: value}

OF_DOCS: Final = "The page /docs takes Swagger UI from a public CDN; this document, /openapi.json, needs nothing else."

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}\Z")
_DIGITS = re.compile(r"[0-9]+\Z")

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
    """An operation of the API; `operation` is what its description says beyond what follows from the rest.

    Without one it is no operation but a page for people, and not described.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    endpoint: Endpoint | OpenEndpoint
    policy: Public | AnyOf
    summary: str
    tag: str
    operation: openapi.Operation | None


class JsonResponse(Response):
    """A response whose bytes are made once, by orjson."""

    media_type = JSON

    def render(self, content: object) -> bytes:
        """JSON in UTF-8 (RFC 8259); bytes are taken as they are."""
        return content if isinstance(content, bytes) else orjson.dumps(content)

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As Starlette's, for a body that is always there and of which `headers` say neither length nor type."""
        self.raw_headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.raw_headers.append((b"content-length", b"%d" % len(self.body)))
        self.raw_headers.append((b"content-type", self.media_type.encode()))


def problem(error: DomainError, path: str) -> Response:
    """The problem document of `error` (RFC 9457); the same for the same refusal but for `instance`, made of `path`."""
    instance = quote(path, safe="/:@!$&'()*+,;=~", errors="replace")
    content = openapi.problem_content(error.code, error.status, error.detail, instance) | error.extra
    return JsonResponse(content, status_code=error.status, headers=error.headers, media_type=PROBLEM)


def header(request: Request, name: bytes) -> str | None:
    """The header of that name, in lower case; of several the last. Found at once, where Starlette walks through all."""
    value = request.scope["state"][HEADERS].get(name)
    return None if value is None else value.decode("latin-1")


async def read_body(request: Request, *, may_be_empty: bool = False, media_types: tuple[str, ...] = (JSON,)) -> bytes:
    """The body, which is said to be of one of these types. 413 `body_too_large`, 415 `media_type`."""
    body = bytearray()
    declared = request.headers.get("content-length", "")
    too_large = _DIGITS.match(declared) is not None and (len(declared) > 9 or int(declared) > BODY_BYTES_MAX)
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
    if not body and may_be_empty:
        return b""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in media_types:
        # RFC 9110, section 15.5.16; W3C Linked Data Platform, section 7.1; RFC 5789, section 3.1
        taken = {"POST": "Accept-Post", "PATCH": "Accept-Patch"}.get(request.method, "Accept")
        raise DomainError("media_type", 415, f"Send {media_types[0]}.", headers={taken: ", ".join(media_types)})
    return bytes(body)


def parsed_json(body: bytes) -> Any:
    """What `body` says.

    400 `malformed_json` (also too deep, a number no double holds, a lone surrogate, bytes that are not UTF-8).
    """
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
        errors = [{"at": "".join(map(_pointer, fault["loc"])), "reason": fault["msg"]} for fault in faults[:20]]
        raise invalid("The request is not valid.", errors=errors) from None


def parameters(model: type[M], request: Request) -> M:
    """The query string as a `model`. 422 `invalid` as validated."""
    return validated(model, dict(request.query_params)) if request.scope["query_string"] else _without(model)


@cache
def _without(model: type[M]) -> M:
    """A model of no parameters; whoever is given it only reads it."""
    return model()


def _pointer(member: str | int) -> str:
    return "/" + str(member).replace("~", "~0").replace("/", "~1")  # RFC 6901, section 3


def if_match_version(header: str | None) -> int | None:
    """The version in `If-Match` (RFC 9110, section 13.1.1), None without one; -1, which none is, for any other tag."""
    if header is None:
        return None
    match = re.fullmatch(r'"([1-9][0-9]{0,8})"', header.strip())
    return int(match[1]) if match else -1


def none_match(header: str | None, version: int) -> bool:
    """Whether `If-None-Match` (RFC 9110, section 13.1.2, weak comparison) holds a tag other than the version's."""
    return if_changed(header, etag(version))


def if_changed(header: str | None, tag: str) -> bool:
    """Whether `If-None-Match` names neither this entity tag nor any."""
    if header is None:
        return True
    tags = {one.strip().removeprefix("W/") for one in header.split(",")}
    return "*" not in tags and tag not in tags


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
    scopes: Mapping[str, str],
    token_url: str,
    verifier: TokenVerifier,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> "Application":
    """The application, every route behind its policy, described in OpenAPI 3.1 at /openapi.json and, to see, at /docs.

    `scopes` says what each scope allows, `token_url` where tokens are given.
    """
    # A redirect to add or drop a last slash would go to whatever Host the client sent.
    app = FastAPI(title=title, version="1", lifespan=lifespan, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, _http_exception)
    guarded = [(route, _guarded(route, verifier)) for route in routes]
    for route, endpoint in guarded:
        app.add_api_route(route.path, endpoint, methods=[route.method], name=route.endpoint.__name__)
    document = openapi.document(
        title=title,
        description=f"{description}\n\n{OF_DOCS}",
        version="1",
        operations=[_described(route, route.operation) for route in routes if route.operation is not None],
        scopes=scopes,
        token_url=token_url,
    )
    # FastAPI cannot tell what an endpoint that takes a plain Request takes and gives.
    app.openapi = lambda: document  # type: ignore[method-assign] # its documented way to give another document
    refuse_without_policy(app.routes, routes)
    return Application(app, guarded)


def refuse_without_policy(served: Sequence[BaseRoute], declared: Sequence[Route]) -> None:
    """RuntimeError when a path is served that no declared route (nor the documentation) stands behind."""
    known = {route.path for route in declared} | {"/openapi.json", "/docs", "/docs/oauth2-redirect"}
    strangers = [path for route in served if (path := getattr(route, "path", repr(route))) not in known]
    if strangers:
        raise RuntimeError(f"served without a policy: {strangers}")


Guarded = Callable[[Request], Awaitable[Response]]


def _guarded(route: Route, verifier: TokenVerifier) -> Guarded:
    policy, endpoint = route.policy, route.endpoint

    async def guarded(request: Request) -> Response:
        try:
            if isinstance(policy, Public):
                return await endpoint(request)  # type: ignore[call-arg] # a public endpoint takes no claims
            authorization = header(request, b"authorization")
            claims = verifier.recall(authorization) or await verifier.verify(authorization)
            if policy.scopes:
                require(claims, *policy.scopes)
            return await endpoint(request, claims)  # type: ignore[call-arg] # and this one does
        except DomainError as error:
            return problem(error, request.scope["path"])

    return guarded


def _described(route: Route, operation: openapi.Operation) -> openapi.Described:
    scopes = None if isinstance(route.policy, Public) else route.policy.scopes
    return openapi.Described(
        route.method, route.path, route.endpoint.__name__, route.summary, route.tag, scopes, operation
    )


async def _http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such route, no such method."""
    assert isinstance(error, HTTPException)  # noqa: S101 # registered for nothing else
    codes = {404: "not_found", 405: "method_not_allowed"}
    detail = "There is no such resource, or it is not yours." if error.status_code == 404 else str(error.detail)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # Starlette names the methods of one route; several may share the path
        allowed = {
            method
            for route in request.app.routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods
        }
        headers["Allow"] = ", ".join(sorted(allowed))
    refusal = DomainError(codes.get(error.status_code, "invalid"), error.status_code, detail, headers=headers)
    return problem(refusal, request.scope["path"])


class Application:
    """Takes a request straight to its route, and around it: request id, trace context, timings, metrics, headers, 500.

    What matches no route (documentation, 404, 405, lifespan) is FastAPI's. Its own way to an endpoint, through five
    middlewares, dependencies and exit stacks, costs a third of reading an order.
    """

    def __init__(self, fastapi: FastAPI, routes: Sequence[tuple[Route, Guarded]]) -> None:
        self.fastapi = fastapi
        self._routes = [(route.method, compile_path(route.path)[0], route, guarded) for route, guarded in routes]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.fastapi(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        made = os.urandom(24).hex()
        request_id = _text(headers.get(b"x-request-id"), _REQUEST_ID) or made[32:]
        traceparent = _text(headers.get(b"traceparent"), TRACEPARENT) or f"00-{made[:32]}-{made[32:]}-01"
        scope.setdefault("state", {}).update({"traceparent": traceparent, HEADERS: headers})
        timings = metrics.Timings()
        metrics.request_timings.set(timings)
        request_context.set({"request_id": request_id, "traceparent": traceparent})
        path, status = "none", 500
        try:
            try:
                if (found := self._match(scope)) is None:
                    response = await self._from_fastapi(scope, receive)
                else:
                    route, guarded = found
                    path = route.path
                    response = await guarded(Request(scope, receive, send))
            except ClientDisconnect:
                log.info("http.client_gone", method=scope["method"], path=scope["path"])  # and nobody to answer
                status = 499  # as nginx counts them
                return
            except Exception:
                log.exception("http.failed", method=scope["method"], path=scope["path"])
                failure = DomainError("internal", 500, "This is our fault, and it has been logged.")
                response = problem(failure, scope["path"])
            status = response.status_code
            response.raw_headers += _headers(response, request_id, timings)
            await response(scope, receive, send)
        finally:
            elapsed = time.perf_counter() - started
            _observer(scope["method"] if scope["method"] in METHODS else "other", path, status)(elapsed)
            if elapsed > SLOW_SECONDS or status >= 500:
                log.warning(
                    "http.slow" if status < 500 else "http.error",
                    method=scope["method"],
                    route=path,
                    status=status,
                    seconds=round(elapsed, 4),
                    db_seconds=round(timings.db, 4),
                    pool_seconds=round(timings.pool, 4),
                )

    def _match(self, scope: Scope) -> tuple[Route, Guarded] | None:
        for method, pattern, route, guarded in self._routes:
            if method == scope["method"] and (match := pattern.match(scope["path"])):
                scope["app"], scope["path_params"] = self.fastapi, match.groupdict()
                return route, guarded
        return None

    async def _from_fastapi(self, scope: Scope, receive: Receive) -> Response:
        """What FastAPI answers, whole."""
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.fastapi(scope, receive, collect)
        body = b"".join(message.get("body", b"") for message in messages[1:])
        response = Response(body, status_code=messages[0]["status"])
        response.raw_headers = list(messages[0]["headers"])
        return response


def _headers(response: Response, request_id: str, timings: metrics.Timings) -> list[tuple[bytes, bytes]]:
    """What every response carries; nothing is to be stored unless its endpoint says otherwise."""
    common = [
        (b"server-timing", timings.server_timing().encode()),
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
    ]
    for name, _ in response.raw_headers:
        if name == b"cache-control":
            # Who keeps it, and whoever gets it from there, tells its age by this (RFC 9111, section 4.2.3).
            common.append((b"date", formatdate(usegmt=True).encode()))
            return common
    common.append((b"cache-control", b"private, no-store"))
    return common


@cache
def _observer(method: str, route: str, status: int) -> Callable[[float], None]:
    return metrics.http_request_seconds.labels(method, route, status).observe


def _text(value: bytes | None, pattern: re.Pattern[str]) -> str | None:
    if value is None:
        return None
    text = value.decode("latin-1")
    return text if pattern.match(text) else None
