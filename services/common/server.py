"""How a process serves HTTP, and WebSockets when it has any."""

import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from services.common import log, metrics
from services.common.settings import ProcessSettings


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one WebSocket may cost. A frame of the client's is at most `frame_bytes_max`.

    Idle connections are pinged, and closed (1011) when no pong comes. What the kernel cannot hand over within
    `stalled_seconds` ends the connection: a client that does not read cannot be told anything (tcp(7), on Linux).
    """

    frame_bytes_max: int = 64 * 1024
    ping_seconds: float = 20.0
    stalled_seconds: float = 30.0
    send_buffer_bytes: int = 128 * 1024  # of the kernel; it would else take megabytes for each slow reader


def serve(
    process: str, settings: ProcessSettings, create_app: Callable[[], ASGIApp], sockets: SocketLimits | None = None
) -> None:
    """Serve what `create_app` gives, and the metrics of `process`, until SIGTERM; that closes WebSockets with 1012."""
    log.configure(process, settings.log_level)
    metrics.serve(process, settings.host, settings.metrics_port)
    app = create_app()
    gc.freeze()  # what is loaded now stays: no need to look at it again and again
    config = configuration(app, settings.host, settings.port, sockets)
    uvicorn.Server(config).run(sockets=[listener(config, sockets)])


def configuration(app: ASGIApp, host: str, port: int, sockets: SocketLimits | None) -> uvicorn.Config:
    """How uvicorn is told to serve `app`."""
    limits = sockets or SocketLimits()
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        ws="websockets-sansio" if sockets else "none",
        ws_max_size=limits.frame_bytes_max,
        ws_ping_interval=limits.ping_seconds,
        ws_ping_timeout=limits.ping_seconds,
        ws_per_message_deflate=False,  # its windows cost 100 KB a connection, and its work is done for each of them
    )


def listener(config: uvicorn.Config, sockets: SocketLimits | None) -> socket.socket:
    """The bound socket; what is set on it holds for every connection that it accepts."""
    bound = config.bind_socket()
    if sockets:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sockets.send_buffer_bytes)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(sockets.stalled_seconds * 1000))
    return bound
