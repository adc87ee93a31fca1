"""A stack: servers, then a preparation such as migrations, then processes; kept running until it is left."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from types import TracebackType
from typing import Final, Self
from urllib.parse import urlsplit

import structlog

from services.embedded import records
from services.embedded.addresses import REPLICA_ENDPOINT, Addresses, with_user
from services.embedded.child import Child
from services.embedded.edge import Edge, nginx
from services.embedded.errors import StackError, from_system
from services.embedded.inspection import inspection_url
from services.embedded.kafka import Kafka
from services.embedded.postgres import DATABASE, Postgres
from services.embedded.processes import PROCESSES, Process, ProcessPart
from services.embedded.program import Part
from services.embedded.replica import Replica
from services.embedded.room import check_ports, check_space
from services.embedded.settings import HOST, StackSettings
from services.embedded.valkey import Valkey

HEALTHY_SECONDS: Final = 30.0

log = structlog.get_logger()


class Stack:
    """`async with Stack(settings) as stack`: inside all of it serves and what dies comes back, outside nothing is left.

    StackError when it cannot start; then nothing is left either. Needs asyncio's own event loop.
    With `edge`, nginx before the processes; it is the machine's.
    What dies before it has lived for `healthy_seconds` is started ever later: who kills on purpose says less.
    With `replica` a second PostgreSQL follows the embedded one, for reports.
    What is `lasting` takes longer to start, and less of the processor after a minute.
    """

    def __init__(
        self,
        settings: StackSettings,
        *,
        processes: Sequence[Process] = PROCESSES,
        edge: bool = False,
        prepare: "Callable[[Stack], Awaitable[None]] | None" = None,
        durable: bool = True,
        replica: bool = False,
        lasting: bool = False,
        healthy_seconds: float = HEALTHY_SECONDS,
    ) -> None:
        self.settings = settings
        if replica and (settings.postgres_url or settings.replica_url):
            raise StackError("a replica is made of the embedded PostgreSQL alone", "Give the URL of yours instead.")
        self.addresses = Addresses.of(settings, replica=replica)
        self.endpoints: dict[str, object] = {}
        self._postgres = None if settings.postgres_url else Postgres.of(settings, durable=durable)
        self._replica = Replica.of(settings, durable=durable) if replica else None
        self._others: list[Part] = []
        if not settings.valkey_url:
            self._others.append(Valkey.of(settings))
        if not settings.kafka_url:
            self._others.append(Kafka.of(settings, lasting=lasting))
        self._processes = [
            ProcessPart(process, settings, self.addresses)
            for process in processes
            if not {"issuer": settings.issuer_url, "provider": settings.provider_url}.get(process.endpoint or "")
        ]
        self._edges = [Edge.of(settings)] if edge else []
        self._prepare = prepare
        self._healthy_seconds = healthy_seconds
        self._children: dict[str, Child] = {}
        self._ending = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """See the class."""
        try:
            await self._start()
        except OSError as error:
            await self._end()
            raise from_system(self.settings.home, error) from error
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @property
    def restarts(self) -> dict[str, int]:
        """How often each part has died."""
        return {name: child.restarts for name, child in self._children.items()}

    def pid(self, name: str) -> int | None:
        """Of the part's process, None between death and restart."""
        return self._children[name].pid

    def send_signal(self, name: str, number: signal.Signals) -> None:
        """As `kill -number`: to stop a part for a while with SIGSTOP, or to end it. One to be stopped has stopped."""
        if pid := self.pid(name):
            os.kill(pid, number)
            if number == signal.SIGSTOP:  # a thread of it may answer until it has, see wait(2)
                os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    async def kill(self, name: str) -> None:
        """The part has died of SIGKILL; its restart is under way."""
        await self._children[name].kill()

    async def ready(self, name: str, *, timeout_seconds: float = 60) -> None:
        """The part serves. StackError, with what its log says, when it does not within that time."""
        try:
            await asyncio.wait_for(self._children[name].ready.wait(), timeout_seconds)
        except TimeoutError:
            raise self._children[name].failed(f"did not serve within {timeout_seconds:g} s") from None

    async def _start(self) -> None:
        home = self.settings.home
        self._ending.enter_context(records.only_supervisor(home))
        check_space(home, self.settings.min_free_bytes)
        await records.end_former(home)
        ours: list[Part] = [*self._processes, *self._edges]
        for part in ours:  # before minutes of preparation
            check_ports(part)
        if self._edges:
            nginx()
        servers = [*([self._postgres] if self._postgres else []), *self._others]
        self._ending.push_async_callback(self._stop, servers)
        await _together(self._run(server) for server in servers)
        if self._postgres:
            await self._postgres.create_database()
        if self._replica:
            self._ending.push_async_callback(self._stop, [self._replica])
            await self._run(self._replica)
        inspection = await inspection_url(self.addresses.postgres, self._postgres_over_tcp(), home)
        if self._prepare:
            await self._prepare(self)
        for process in self._processes:
            self._ending.push_async_callback(self._stop, [process])
        await _together(self._run(process) for process in self._processes)
        for edge in self._edges:
            self._ending.push_async_callback(self._stop, [edge])
            await self._run(edge)
        self.endpoints = self._described(inspection)
        self._ending.callback((home / "endpoints.json").unlink, missing_ok=True)
        records.write_json(home / "endpoints.json", self.endpoints)

    async def _end(self) -> None:
        """All is stopped, even when we are cancelled meanwhile: every stop has its bound."""
        ending = asyncio.ensure_future(self._ending.aclose())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending
            raise

    async def _run(self, part: Part) -> None:
        program = await part.prepare()
        check_ports(part)
        child = self._children[part.name] = Child(part, self.settings.home, healthy_seconds=self._healthy_seconds)
        await child.start(program)

    async def _stop(self, parts: Sequence[Part]) -> None:
        await asyncio.gather(*(self._children[part.name].stop() for part in parts if part.name in self._children))

    def _postgres_over_tcp(self) -> str:
        if self._postgres:
            return f"postgresql://{HOST}:{self._postgres.port}/{DATABASE}"
        return self.addresses.postgres

    def _described(self, inspection: str | None) -> dict[str, object]:
        """The content of endpoints.json: what exists, nothing else."""
        return {
            **{part.process.endpoint: part.url for part in self._processes if part.process.endpoint},
            **{edge.name: edge.url for edge in self._edges},
            "metrics": {part.name: part.metrics_url for part in self._processes if part.metrics_port},
            **({"postgres": inspection} if inspection else {}),
            **self._replica_described(inspection),
            "valkey": self.addresses.valkey,
            "kafka": self.addresses.kafka,
            **({"issuer": self.addresses.issuer} if self.settings.issuer_url else {}),
            **({"provider": self.settings.provider_url} if self.settings.provider_url else {}),
        }

    def _replica_described(self, inspection: str | None) -> dict[str, object]:
        """As the role that inspects: it has come there with all the rest."""
        where = f"postgresql://{HOST}:{self._replica.port}/{DATABASE}" if self._replica else self.addresses.replica
        if not inspection or not where:
            return {}
        parts = urlsplit(inspection)
        return {REPLICA_ENDPOINT: with_user(where, parts.username or "", parts.password)}


@contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the body by cancellation, once, and are then done with: the caller goes on after it.

    Further ones are ignored, so that an impatient Ctrl-C does not leave servers behind; every stop has its bound.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    if task is None:
        raise RuntimeError("stop_on_signals is for the body of a task")
    asked: list[signal.Signals] = []

    def ask(number: signal.Signals) -> None:
        if not asked:
            asked.append(number)
            log.info("stopping", signal=number.name)
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    except asyncio.CancelledError:
        if not asked or task.uncancel():
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _together(parts: Iterable[Coroutine[None, None, None]]) -> None:
    """All of them, at once; the first that fails cancels the others and is what is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(part)
    except ExceptionGroup as failed:
        expected = [error for error in failed.exceptions if isinstance(error, StackError)]
        raise (expected or failed.exceptions)[0] from None
