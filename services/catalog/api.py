"""Process `catalog-api`: keeps the products of the shop, and shows them to everybody."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.catalog import queries
from services.catalog.endpoints import Context
from services.catalog.routes import ROUTES, SCOPES
from services.catalog.settings import CatalogSettings
from services.common import clock
from services.common.auth import TokenVerifier
from services.common.http import Application, build_app
from services.common.server import serve

PROCESS = "catalog-api"


def create_app(settings: CatalogSettings, now: clock.Clock = clock.now) -> Application:
    """The application; connections are opened by its lifespan."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Context(
            PROCESS, settings, verifier, outbox="catalog", now=now, session=queries.SESSION
        ) as app.state.context:
            yield

    return build_app(
        title="Catalogue",
        description="Keeps and shows products. Prices are integers in minor units of the product's currency.",
        routes=ROUTES,
        scopes=SCOPES,
        token_url=f"{settings.issuer_url.removesuffix('/')}/token",  # where the issuer for development has it
        verifier=verifier,
        lifespan=lifespan,
    )


def main() -> None:
    """Serve until SIGTERM."""
    settings = CatalogSettings()
    serve(PROCESS, settings, lambda: create_app(settings))
