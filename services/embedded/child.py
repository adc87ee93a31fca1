"""One part of a stack as a running process: started, kept running, stopped."""

import asyncio
import os
import signal
import time
from asyncio.subprocess import Process as Running
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil
import structlog

from services.embedded import records
from services.embedded.accounts import launch
from services.embedded.errors import StackError, from_log, log_position
from services.embedded.polling import until
from services.embedded.program import Part, Program

_FIRST_WAIT_SECONDS = 0.2  # "back within 1 s", even when it needs half of it to start
_LONGEST_WAIT_SECONDS = 10.0
_LOG_BYTES_MAX = 10 * 2**20

log = structlog.get_logger()


class Child:
    """A part's process. `ready` is set while it serves, `restarts` counts the times it had died.

    One that has lived for `healthy_seconds` gets a quick restart, whatever was before.
    """

    def __init__(self, part: Part, home: Path, *, healthy_seconds: float) -> None:
        self.part = part
        self.name = part.name
        self.ready = asyncio.Event()
        self.restarts = 0
        self._home = home
        self._healthy_seconds = healthy_seconds
        self._log = home / "log" / f"{part.name}.log"
        self._log_since = 0
        self._program: Program | None = None
        self._running: Running | None = None
        self._started = 0.0
        self._keeper: asyncio.Task[NoReturn] | None = None

    @property
    def pid(self) -> int | None:
        """Of its process, None while there is none."""
        return self._running.pid if self._running and self._running.returncode is None else None

    async def start(self, program: Program) -> None:
        """It serves, and is kept running from now on. StackError when it ends before or is not ready in time."""
        running = await self._spawn(program)
        await self._until_ready_or_ended(program, running, program.start_seconds)
        if running.returncode is not None:
            raise self.failed(f"ended with code {running.returncode} at its start")
        if not self.ready.is_set():
            raise self.failed(f"was not ready within {program.start_seconds:g} s")
        log.info("started", name=self.name, pid=running.pid, seconds=round(time.monotonic() - self._started, 2))
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def failed(self, how: str) -> StackError:
        """That it `how`, with what it has logged since its last start."""
        return from_log(f"{self.name} {how}", self._log, self._log_since)

    async def stop(self) -> None:
        """No process of it is left: asked to end, killed with its group when it takes longer than its grace."""
        if self._keeper:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        self.ready.clear()
        running, program = self._running, self._program
        if running and program:
            with suppress(ProcessLookupError):
                running.send_signal(program.stop_signal)
            with suppress(TimeoutError):
                await asyncio.wait_for(running.wait(), program.grace_seconds)
            if running.returncode is None:
                log.warning("killed", name=self.name, after_seconds=program.grace_seconds)
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
                await running.wait()
        records.forget(self._home, self.name)

    async def kill(self) -> None:
        """Its process has died of SIGKILL, unless there was none."""
        running = self._running
        if running and running.returncode is None:
            running.kill()
            await running.wait()
            self.ready.clear()

    async def _keep(self) -> NoReturn:
        """Whenever it ends it is started again, at first at once, then ever later."""
        wait_seconds = _FIRST_WAIT_SECONDS
        while True:
            if self._running:
                await self._running.wait()
                lived = time.monotonic() - self._started
                wait_seconds = _FIRST_WAIT_SECONDS if lived > self._healthy_seconds else wait_seconds
                self.ready.clear()
                self.restarts += 1
                log.warning(
                    "died", name=self.name, code=self._running.returncode, restarts=self.restarts, again_in=wait_seconds
                )
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(2 * wait_seconds, _LONGEST_WAIT_SECONDS)
            self._running = None
            try:
                await self._restart()
            except Exception as error:  # noqa: BLE001  no failure of a part may end its supervision
                log.error("restart_failed", name=self.name, error=str(error) or type(error).__name__)

    async def _restart(self) -> None:
        program = await self.part.prepare()
        running = await self._spawn(program)
        await self._until_ready_or_ended(program, running)
        if self.ready.is_set():
            log.info("restarted", name=self.name, pid=running.pid, seconds=round(time.monotonic() - self._started, 2))

    async def _until_ready_or_ended(
        self, program: Program, running: Running, timeout_seconds: float | None = None
    ) -> None:
        ended, ready = asyncio.ensure_future(running.wait()), asyncio.ensure_future(until(program.ready))
        try:
            await asyncio.wait({ended, ready}, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            if ready.done() and not ended.done():
                ready.result()
                self.ready.set()
        finally:
            ended.cancel()
            ready.cancel()

    async def _spawn(self, program: Program) -> Running:
        self._program = program
        self._started = time.monotonic()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if log_position(self._log) > _LOG_BYTES_MAX:
            self._log.replace(self._log.with_suffix(".log.1"))
        self._log_since = log_position(self._log)
        command, identity = launch(program.account, program.argv, program.must_reach)
        with self._log.open("ab") as output:
            try:
                self._running = await asyncio.create_subprocess_exec(
                    *command,
                    env=program.env,
                    cwd=program.directory or "/",
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C in a terminal is for the supervisor, which stops them in order
                    **identity,
                )
            except OSError as error:
                raise StackError(
                    f"{command[0]} does not run ({error})", "Install the packages for this platform."
                ) from error
        with suppress(psutil.NoSuchProcess):
            records.write(
                self._home,
                records.Record(
                    name=self.name,
                    pid=self._running.pid,
                    created=psutil.Process(self._running.pid).create_time(),
                    argv=list(program.argv),
                    stop_signal=program.stop_signal,
                    grace_seconds=program.grace_seconds,
                ),
            )
        return self._running
