"""What realtime-gateway serves: every path, and who may use it."""

from typing import Final

from services.common.http import AnyOf, Public, Route
from services.common.openapi import UNAVAILABLE, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer
from services.common.websocket import SocketRoute
from services.realtime.endpoints import (
    READ,
    READ_ANY,
    Context,
    get_asset,
    get_health,
    get_page,
    get_readiness,
    get_status,
)
from services.realtime.frames import PATH, PROTOCOL
from services.realtime.status import StatusAnswer

SCOPES: Final = {READ: "follow one's own orders", READ_ANY: "see how the backend is"}

_STATUS: Final = Operation(
    StatusAnswer, description="From the metrics of the processes behind it, at most two seconds old."
)
_READY: Final = Operation(ReadinessAnswer, refusals=UNAVAILABLE)

ROUTES: Final = (
    Route("GET", "/", get_page, Public(), "Follow an order in a browser", "page", None),
    Route("GET", "/assets/{name}", get_asset, Public(), "What the page is made of", "page", None),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can WebSockets be served", "health", _READY),
    Route("GET", "/v1/status", get_status, AnyOf((READ_ANY,)), "How far behind is the stream", "status", _STATUS),
)


def sockets(at: Context) -> tuple[SocketRoute, ...]:
    """The WebSockets that are served."""
    return (SocketRoute(PATH, PROTOCOL, at.follow, AnyOf((READ,)), at.admit),)
