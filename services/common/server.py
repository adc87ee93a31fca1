"""How a process serves HTTP."""

import gc
from collections.abc import Callable

import uvicorn

from services.common import log, metrics
from services.common.http import Application
from services.common.settings import ProcessSettings


def serve(process: str, settings: ProcessSettings, create_app: Callable[[], Application]) -> None:
    """Serve what `create_app` gives, and the metrics of `process`, until SIGTERM."""
    log.configure(process, settings.log_level)
    metrics.serve(process, settings.host, settings.metrics_port)
    app = create_app()
    gc.freeze()  # what is loaded now stays: no need to look at it again and again
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
    )
