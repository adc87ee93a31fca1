"""Process `customers-api`: keeps the profiles and addresses of customers, each for its customer alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common import caches, clock
from services.common.auth import TokenVerifier
from services.common.db import Database
from services.common.http import Application, Writes, build_app
from services.common.outbox import Wake
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
        database = Database(settings.postgres_url, application_name=PROCESS, size_max=settings.pool_size)
        wake = Wake(settings.valkey_url, "customers")
        cache = caches.cache(settings.cache_at)
        at = Context(
            database=database,
            cache=cache,
            wake=wake,
            writes=Writes(),
            now=now,
            orders_url=settings.orders_url,
            degraded=lambda: [] if wake.healthy else ["valkey does not answer: the relay polls"],
        )
        app.state.context = at
        await database.open()
        wake.start()
        try:
            yield
        finally:
            await at.writes.drain()
            if cache is not None:
                await cache.close()
            await wake.close()
            await database.close()
            await verifier.aclose()

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
