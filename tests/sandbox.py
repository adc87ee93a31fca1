"""The payments sandbox as a process of its own, which can be killed, and somebody it calls back."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.common.signature import is_signed
from services.embedded.callbacks import HEADER
from services.embedded.program import answers
from services.embedded.room import free_port_base
from tests.serving import listening, serving_as

SECRET = "a secret that the sandbox and its caller share"


@dataclass
class Sandbox:
    """The process at `url`, whose ledger is in `home`."""

    home: Path
    port: int
    callback_url: str = ""
    process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> Self:
        """It serves."""
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.embedded.payments_sandbox"),
            env={
                "PATH": os.environ["PATH"],
                "ORDERS_HOME": str(self.home),
                "ORDERS_PORT": str(self.port),
                "ORDERS_CALLBACK_URL": self.callback_url,
                "ORDERS_CALLBACK_SECRET": SECRET,
                "ORDERS_LOG_LEVEL": "WARNING",
            },
        )
        async with asyncio.timeout(60):
            while not await answers(self.port, "/healthz"):
                assert self.process.returncode is None, "payments-sandbox ended"
                await asyncio.sleep(0.02)
        return self

    async def kill(self) -> None:
        """It has died of SIGKILL."""
        await self._ended(signal.SIGKILL)

    async def stop(self) -> int:
        """Its exit code after SIGTERM."""
        return await self._ended(signal.SIGTERM)

    async def _ended(self, number: signal.Signals) -> int:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(60):
            return await self.process.wait()


@asynccontextmanager
async def running_sandbox(home: Path, callback_url: str = "") -> AsyncIterator[Sandbox]:
    """A sandbox on an empty ledger; what runs of it is stopped in the end."""
    sandbox = Sandbox(home, free_port_base(), callback_url)
    try:
        yield await sandbox.start()
    finally:
        await sandbox.stop()


@dataclass
class Called:
    """Who is called back: what came, and whether it is taken."""

    url: str
    status: int = 204
    bodies: list[bytes] = field(default_factory=list)
    refused: int = 0
    came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def take(self, request: Request) -> Response:
        body = await request.body()
        signed = is_signed(request.headers.get(HEADER), SECRET.encode(), body, now=time.time())
        async with self.came:
            if signed and self.status == 204:
                self.bodies.append(body)
            else:
                self.refused += 1
            self.came.notify_all()
        return Response(status_code=self.status if signed else 400)

    async def told(self, order_id: str, *, times: int = 1) -> list[dict[str, Any]]:
        """The callbacks of an order that came, once there are so many."""
        async with asyncio.timeout(60), self.came:
            await self.came.wait_for(lambda: len(self._of(order_id)) >= times)
            return self._of(order_id)

    async def until_refused(self, times: int) -> None:
        """So many were not taken."""
        async with asyncio.timeout(60), self.came:
            await self.came.wait_for(lambda: self.refused >= times)

    def _of(self, order_id: str) -> list[dict[str, Any]]:
        return [body for body in map(json.loads, self.bodies) if body["order_id"] == order_id]


@asynccontextmanager
async def somebody_called() -> AsyncIterator[Called]:
    """A server that takes callbacks whose signature is right."""
    listener, url = listening()
    called = Called(f"{url}/callbacks")
    app = Starlette(routes=[Route("/callbacks", called.take, methods=["POST"])])
    async with serving_as(uvicorn.Config(app, log_config=None, lifespan="off"), listener):
        yield called


async def ledger(url: str) -> list[dict[str, object]]:
    """Every payment that the sandbox has, over HTTP."""
    payments: list[dict[str, object]] = []
    told: dict[str, str] = {"changed_since": "2026-01-01T00:00:00Z"}
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        while told:
            page = (await http.get("/v1/payments", params=told)).raise_for_status().json()
            payments += page["data"]
            told = {"cursor": page["next_cursor"]} if page["next_cursor"] else {}
    return payments
