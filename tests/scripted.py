"""A real HTTP server that answers as a test has told it to, and remembers what it was asked."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from tests.serving import listening, serving_as

HANGS: Final = 0  # as a status: nothing is answered until the caller leaves
CUT: Final = -1  # the answer begins, and the connection is closed


@dataclass(frozen=True)
class Asked:
    """One request; a form's or query's parameters as they were written."""

    what: str  # "POST /path"
    told: Mapping[str, str]
    key: str | None


@dataclass
class Scripted:
    """`answers` are given in their order, to whatever is asked; one that is not foreseen is a 501."""

    url: str
    answers: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    async def answer(self, request: Request) -> Response:
        """The next."""
        told = dict(parse_qsl((await request.body()).decode() or request.url.query))
        self.asked.append(Asked(f"{request.method} {request.url.path}", told, request.headers.get("idempotency-key")))
        if not self.answers:
            return JSONResponse({"error": {"message": "not foreseen", "type": "api_error"}}, 501)
        status, body = self.answers.pop(0)
        if status == HANGS:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return _Cut() if status <= 0 else JSONResponse(body, status)


class _Cut(Response):
    async def __call__(self, _: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})


@asynccontextmanager
async def scripted_server() -> AsyncIterator[Scripted]:
    """It serves; nothing is foreseen yet."""
    listener, url = listening()
    scripted = Scripted(url)
    app = Starlette(routes=[Route("/{path:path}", scripted.answer, methods=["GET", "POST", "DELETE"])])
    config = uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1)
    async with serving_as(config, listener):
        yield scripted
