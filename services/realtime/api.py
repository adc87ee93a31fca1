"""Process `realtime-gateway`: events of orders over WebSocket, each once and in order per order."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.common.auth import TokenVerifier
from services.common.calls import Service
from services.common.follower import Follower
from services.common.http import build_app
from services.common.server import SocketLimits, serve
from services.common.websocket import WithSockets, ended
from services.contracts.envelope import ORDERS_TOPIC
from services.realtime.backlog import Backlog
from services.realtime.endpoints import Context
from services.realtime.hub import Hub
from services.realtime.routes import ROUTES, SCOPES, sockets
from services.realtime.settings import RealtimeSettings
from services.realtime.status import Status
from services.realtime.subscriber import Limits

PROCESS = "realtime-gateway"


def create_app(settings: RealtimeSettings, topic: str = ORDERS_TOPIC) -> WithSockets:
    """The application; its lifespan follows `topic`."""
    verifier = TokenVerifier(settings.issuer_url, settings.audience)
    orders = Service("orders-api", settings.orders_url, for_users=True)
    status = Status([url for url in settings.metrics_urls.split(",") if url])
    hub = Hub()

    def lost() -> None:
        at.restart()

    at = Context(
        hub=hub,
        backlog=Backlog(orders),
        follower=Follower(settings.kafka_url, topic, handle=hub.publish, lost=lost),
        status=status,
        limits=Limits(settings.queue_messages, settings.queue_bytes, settings.orders_max, settings.own_orders_max),
        sockets_max=settings.sockets_max,
        breakers=(orders.breaker, verifier.breaker),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.context = at
        following = asyncio.create_task(at.follower.run(), name="follower")
        try:
            yield
        finally:
            await ended(following)
            await orders.aclose()
            await status.aclose()
            await verifier.aclose()

    app = build_app(
        title="Realtime",
        description="Events of orders over WebSocket, at /v1/stream: docs/realtime.md.",
        routes=ROUTES,
        scopes=SCOPES,
        token_url=f"{settings.issuer_url.removesuffix('/')}/token",  # where the issuer for development has it
        verifier=verifier,
        lifespan=lifespan,
    )
    return WithSockets(app, sockets(at), verifier)


def limits(settings: RealtimeSettings) -> SocketLimits:
    """What a WebSocket may cost the server."""
    return SocketLimits(ping_seconds=settings.ping_seconds, stalled_seconds=settings.stalled_seconds)


def main() -> None:
    """Serve until SIGTERM."""
    settings = RealtimeSettings()
    serve(PROCESS, settings, lambda: create_app(settings), limits(settings))
