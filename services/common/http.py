"""HTTP: routes that must have a policy, problem documents, and what every response carries.

A route is declared with its policy; `build_app` turns routes into a FastAPI application and refuses one without. The
caller is authenticated and authorised before the endpoint reads anything of the request.
"""

import os
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from email.utils import formatdate
from functools import cache
from typing import Final, Literal

import structlog
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, compile_path
from starlette.types import Message, Receive, Scope, Send

from services.common import metrics, openapi
from services.common.auth import Claims, TokenVerifier, require
from services.common.errors import DomainError
from services.common.http_request import HEADERS, header
from services.common.http_response import problem
from services.common.log import request_context
from services.contracts.envelope import TRACEPARENT

log = structlog.get_logger()

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})  # a client may invent others
SLOW_SECONDS: Final = 0.2  # the objective for a response

OF_DOCS: Final = "The page /docs takes Swagger UI from a public CDN; this document, /openapi.json, needs nothing else."

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
