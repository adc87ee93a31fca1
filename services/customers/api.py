"""Process `customers-api`: keeps the profiles and addresses of customers, each for its customer alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import clock
from services.common.auth import TokenVerifier
from services.common.http import Application, build_app
from services.common.server import serve
from services.customers.endpoints import Context
from services.customers.routes import ROUTES, SCOPES
from services.customers.settings import CustomersSettings

PROCESS = "customers-api"


def create_app(settings: CustomersSettings, now: clock.Clock = clock.now) -> Application:
    """The application; connections are opened by its lifespan."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        at = Context(PROCESS, settings, verifier, outbox="customers", now=now)
        at.orders_url = settings.orders_url
        async with at:
            app.state.context = at
            yield

    return build_app(
        title="Customers",
        description="Keeps profiles and addresses. Whose they are is said by the token; nobody sees another's.",
        routes=ROUTES,
        scopes=SCOPES,
        token_url=f"{settings.issuer_url.removesuffix('/')}/token",  # where the issuer for development has it
        verifier=verifier,
        lifespan=lifespan,
    )


def main() -> None:
    """Serve until SIGTERM."""
    settings = CustomersSettings()
    serve(PROCESS, settings, lambda: create_app(settings))
