"""The limit of what is answered from a cache: constant bytes behind our own authentication, on our own server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI, Request, Response

from services.common.auth import Claims, TokenVerifier
from services.common.http import Application, Public, Route, build_app
from services.common.http_response import JsonResponse
from services.common.server import serve
from services.orders.routes import ROUTES, SCOPES
from services.orders.settings import OrdersSettings

BODY = b"x" * 760  # as many as an order of two lines has


GET_ORDER = next(route for route in ROUTES if (route.method, route.path) == ("GET", "/v1/orders/{order_id}"))


async def constant(request: Request, claims: Claims) -> Response:  # noqa: ARG001  what every endpoint is given
    """GET /v1/orders/{order_id}."""
    return JsonResponse(BODY)


async def ready(_: Request) -> Response:
    """GET /readyz."""
    return Response()


def create_app(settings: OrdersSettings) -> Application:
    """The application."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001  FastAPI's
        yield
        await verifier.aclose()

    return build_app(
        title="Constant",
        description="A limit.",
        routes=[
            replace(GET_ORDER, endpoint=constant),
            Route("GET", "/readyz", ready, Public(), "Ready", "bench", None),
        ],
        scopes=SCOPES,
        token_url=settings.issuer_url,
        verifier=verifier,
        lifespan=lifespan,
    )


if __name__ == "__main__":
    settings = OrdersSettings()
    serve("constant", settings, lambda: create_app(settings))
