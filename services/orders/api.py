"""Process `orders-api`: takes, shows and advances orders over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI

from services.common import clock
from services.common.auth import TokenVerifier
from services.common.db import Database
from services.common.db_errors import TransientError
from services.common.http import Application, build_app
from services.common.server import serve
from services.orders import queries
from services.orders.endpoints import Context
from services.orders.routes import ROUTES, SCOPES
from services.orders.settings import OrdersSettings
from services.orders.turns import Turns

PROCESS = "orders-api"
MONTHS_REFRESH_SECONDS = 5.0  # how soon ids of a month that was made just now are looked up

logger = structlog.get_logger()


def create_app(settings: OrdersSettings, now: clock.Clock = clock.now) -> Application:
    """The application; connections are opened by its lifespan."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        at = Context(PROCESS, settings, verifier, outbox="orders", now=now, replica=_replica(settings))
        at.turns = Turns()
        at.expires_after, at.months_ahead = settings.pending_expires_after, settings.months_ahead
        at.reports_lag_max_seconds = settings.reports_lag_max_seconds
        async with at:
            app.state.context = at
            await _refresh_months(at)
            watch = asyncio.create_task(_watch_months(at), name="months")
            try:
                yield
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    return build_app(
        title="Orders",
        description="Places, shows and advances orders. Amounts are integers in minor units of the order's currency.",
        routes=ROUTES,
        scopes=SCOPES,
        token_url=f"{settings.issuer_url.removesuffix('/')}/token",  # where the issuer for development has it
        verifier=verifier,
        lifespan=lifespan,
    )


def _replica(settings: OrdersSettings) -> Database | None:
    """Connected to when the first report is asked for: it may be away."""
    if not settings.replica_url:
        return None
    return Database(settings.replica_url, application_name=f"{PROCESS} reports", size_min=0, size_max=2, name="replica")


async def _refresh_months(at: Context) -> None:
    months = await queries.get_months(at.database)
    if months:
        at.first_month = clock.EPOCH.replace(year=months[0].first_on.year, month=months[0].first_on.month)


async def _watch_months(at: Context) -> None:
    while True:
        await asyncio.sleep(MONTHS_REFRESH_SECONDS)
        try:
            await _refresh_months(at)
        except TransientError as error:
            logger.warning("months.not_refreshed", reason=error.reason)


def main() -> None:
    """Serve until SIGTERM."""
    settings = OrdersSettings()
    serve(PROCESS, settings, lambda: create_app(settings))
