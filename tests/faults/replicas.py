"""A process of ours several times over, as its console script: killed at will, and started again at once."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from services.embedded.program import answers
from tests.faults.waiting import eventually


class Replica:
    """One process that serves HTTP (orders-api, when no other is named) on a port of its own."""

    def __init__(
        self,
        number: int,
        port: int,
        environment: dict[str, str],
        log: Path,
        *,
        name: str = "orders-api",
        metrics_port: int = 0,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.ready = asyncio.Event()
        self._port = port
        self._script = Path(sys.executable).with_name(name)
        self.log = log / f"{name}-{number}.log"
        ports = {"ORDERS_PORT": str(port), "ORDERS_METRICS_PORT": str(metrics_port)}
        self._environment = {**os.environ, **environment, **ports}
        self.metrics_url = f"http://127.0.0.1:{metrics_port}"
        self._running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """It serves."""
        with self.log.open("ab") as output:
            self._running = await asyncio.create_subprocess_exec(
                str(self._script), env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output
            )

        async def serves() -> bool:
            assert self._running is not None
            assert self._running.returncode is None, f"it ended with {self._running.returncode}, see {self.log}"
            return await answers(self._port, "/readyz")

        await eventually(serves, f"{self.url} serves", seconds=30)
        self.ready.set()

    def kill(self) -> None:
        """SIGKILL, now."""
        assert self._running is not None
        assert self._running.returncode is None, "it was dead before it was killed"
        self.ready.clear()
        self._running.send_signal(signal.SIGKILL)

    async def start_again(self) -> None:
        """It has ended, and serves anew."""
        await self.ended()
        await self.start()

    async def ended(self) -> None:
        """It is gone, killed if it was not."""
        self.ready.clear()
        if self._running is not None:
            if self._running.returncode is None:
                self._running.kill()
            await self._running.wait()
