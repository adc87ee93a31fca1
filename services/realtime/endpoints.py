"""What is answered and served. `routes` says which path each of these is behind."""

from dataclasses import dataclass, field
from typing import Final

from fastapi import Request, Response

from services.common.auth import Claims
from services.common.breaker import Breaker, degraded
from services.common.errors import not_found, unavailable
from services.common.follower import Follower
from services.common.http_conditional import if_changed
from services.common.http_response import JsonResponse
from services.common.websocket import Close, Connection
from services.realtime.backlog import Backlog
from services.realtime.hub import Hub
from services.realtime.page import ASSET_HEADERS, ASSETS, PAGE, PAGE_ETAG, PAGE_HEADERS
from services.realtime.status import Status
from services.realtime.subscriber import Limits, Subscriber

READ: Final = "orders:read"
READ_ANY: Final = "orders:read:any"


@dataclass(slots=True)
class Context:
    """What this process works with."""

    hub: Hub
    backlog: Backlog
    follower: Follower
    status: Status
    limits: Limits
    sockets_max: int
    breakers: tuple[Breaker, ...]  # of what this process calls
    subscribers: set[Subscriber] = field(default_factory=set)

    def admit(self) -> None:
        """503 `unavailable` while a further WebSocket could miss an event, or would be one too many."""
        if not self.follower.placed:
            raise unavailable("Where the stream of events is at is not known yet.")
        if len(self.subscribers) >= self.sockets_max:
            raise unavailable("This gateway has as many WebSockets as it takes.")

    async def follow(self, connection: Connection) -> None:
        """One WebSocket, from its acceptance to its end."""
        subscriber = Subscriber(connection, self.hub, self.backlog, self.limits)
        self.subscribers.add(subscriber)
        try:
            await subscriber.run()
        finally:
            self.subscribers.discard(subscriber)

    def restart(self) -> None:
        """Every WebSocket is closed (1012): clients come again and say what they have."""
        for subscriber in self.subscribers:
            subscriber.end(Close.RESTART, "Connect again, and subscribe after the last versions you have.")


async def get_page(request: Request) -> Response:
    """GET /."""
    if not if_changed(request.headers.get("if-none-match"), PAGE_ETAG):
        return Response(status_code=304, headers=PAGE_HEADERS)
    return Response(PAGE, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)


async def get_asset(request: Request) -> Response:
    """GET /assets/{name}. 404 `not_found` for a name that no file has now."""
    asset = ASSETS.get(request.path_params["name"])
    if asset is None:
        raise not_found()
    return Response(asset.content, media_type=asset.media_type, headers=ASSET_HEADERS)


async def get_health(_: Request) -> Response:
    """GET /healthz."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz. 503 until the positions on every partition are known."""
    at = request.app.state.context
    assert isinstance(at, Context)  # noqa: S101 # set by the process
    at.admit()
    kafka = [] if at.follower.answers else ["kafka does not answer: events come when it does"]
    return JsonResponse({"status": "ok", "warnings": kafka + degraded(*at.breakers)})


async def get_status(request: Request, _: Claims) -> Response:
    """GET /v1/status."""
    at = request.app.state.context
    assert isinstance(at, Context)  # noqa: S101 # set by the process
    return JsonResponse((await at.status.now()).model_dump())
