"""WebSockets: paths that must have a policy, a token in the subprotocol, and close codes of our own.

A browser cannot set headers of a WebSocket's handshake, so the token travels as the subprotocol `bearer.<token>` beside
the protocol that is spoken. A cookie would be sent by any page (`Origin` says whose, and is not trusted here).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp, Receive, Scope, Send

from services.common.auth import Claims, TokenVerifier, require
from services.common.errors import DomainError, not_found
from services.common.http import AnyOf
from services.common.http_response import problem

_BEARER: Final = "bearer."
_REASON_BYTES_MAX: Final = 123  # RFC 6455, section 5.5: a control frame's payload is 125 bytes, of which the code has 2

websocket_connections = Gauge("websocket_connections", "WebSockets that are open")
websocket_closed_total = Counter(
    "websocket_closed_total", "WebSockets that have ended, by close code; 1005 and 1006: the client just went", ["code"]
)


class Close(IntEnum):
    """Close codes (RFC 6455, section 7.4; 4000 and up are an application's own)."""

    INTERNAL = 1011
    RESTART = 1012
    TOKEN = 4401
    SCOPE = 4403
    SLOW = 4408


class ConnectionGoneError(Exception):
    """The other side has closed, or we have."""


class Connection:
    """An open WebSocket of a caller who may use it. `token` is what they showed, `claims` what it says."""

    def __init__(self, claims: Claims, token: str, receive: Receive, send: Send) -> None:
        self.claims = claims
        self.token = token
        self._receive = receive
        self._send = send
        self.code = 1006  # how it has ended; until then as if it had broken (RFC 6455, section 7.1.5)

    async def read(self) -> str | bytes:
        """The next message: text, or bytes of a binary one. ConnectionGoneError when there will be none."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.code = message.get("code") or 1005
            raise ConnectionGoneError
        text: str | None = message.get("text")
        return message["bytes"] if text is None else text

    async def write(self, text: str) -> None:
        """`text` is on its way. Waits while the other side does not read. OSError when it has gone."""
        await self._sent({"type": "websocket.send", "text": text})

    async def close(self, code: int, reason: str) -> None:
        """The other side is told why; `read` ends. Waits and fails as `write` does."""
        shortened = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        await self._sent({"type": "websocket.close", "code": code, "reason": shortened})

    async def _sent(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except RuntimeError as error:  # uvicorn's way to say that it has closed by itself, when no pong came
            raise OSError(str(error)) from error


@dataclass(frozen=True, slots=True)
class SocketRoute:
    """A path, who may open it, and what is done with each connection until it returns."""

    path: str
    protocol: str
    endpoint: Callable[[Connection], Awaitable[None]]
    policy: AnyOf
    admit: Callable[[], None]  # raises a DomainError while no further connection can be served


class WithSockets:
    """An application with WebSockets beside its HTTP: what is not among `routes` is not served."""

    def __init__(self, app: ASGIApp, routes: Sequence[SocketRoute], verifier: TokenVerifier) -> None:
        self.http = app
        self._routes = {route.path: route for route in routes}
        self._verifier = verifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection or request."""
        if scope["type"] != "websocket":
            await self.http(scope, receive, send)
            return
        await receive()  # websocket.connect
        try:
            route = self._routes.get(scope["path"])
            if route is None:
                raise not_found()
            offered: list[str] = scope["subprotocols"]
            if route.protocol not in offered:
                raise DomainError("subprotocol_missing", 400, f"Offer the subprotocol {route.protocol}.")
            route.admit()
            token = next((one[len(_BEARER) :] for one in offered if one.startswith(_BEARER)), None)
            refused, claims = None, None
            try:
                claims = await self._verifier.verify(None if token is None else f"Bearer {token}")
                if route.policy.scopes:
                    require(claims, *route.policy.scopes)
            except DomainError as error:
                if error.status not in (401, 403):
                    raise
                refused = error
        except DomainError as error:
            # Before the handshake is accepted it is HTTP that answers (ASGI, websocket.http.response).
            await problem(error, scope["path"])(scope, receive, send)
            return
        # Accepted even when it is refused: a browser shows a close code, and nothing of a refused handshake.
        await send({"type": "websocket.accept", "subprotocol": route.protocol})
        if refused is not None or claims is None or token is None:
            await self._refuse(refused, send)
            return
        await self._serve(route, Connection(claims, token, receive, send))

    async def _refuse(self, refused: DomainError | None, send: Send) -> None:
        code = Close.SCOPE if refused is not None and refused.status == 403 else Close.TOKEN
        detail = refused.detail if refused is not None else "A bearer token is required."
        websocket_closed_total.labels(int(code)).inc()
        await send({"type": "websocket.close", "code": int(code), "reason": detail[:_REASON_BYTES_MAX]})

    async def _serve(self, route: SocketRoute, connection: Connection) -> None:
        websocket_connections.inc()
        try:
            await route.endpoint(connection)
        finally:
            websocket_connections.dec()
            websocket_closed_total.labels(connection.code).inc()


def expires_in(claims: Claims, now: float) -> float:
    """Seconds until the token has expired, not negative."""
    return max(0.0, claims.expires_at - now)


async def ended(*tasks: "asyncio.Task[Any]") -> None:
    """All are cancelled and have ended; what they failed of is the caller's to look at."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
