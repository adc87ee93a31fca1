"""A streaming replica of the embedded PostgreSQL, for reports: made by pg_basebackup, hot standby, its own port."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from services.embedded.accounts import Account, launch
from services.embedded.postgres import ENVIRONMENT, Postgres
from services.embedded.settings import REPLICA, StackSettings
from services.embedded.tool import run_tool

SLOT = "replica"  # the primary keeps what the replica has not had yet, up to max_slot_wal_keep_size


@dataclass(frozen=True, kw_only=True)
class Replica(Postgres):
    """It follows `primary`, which has to serve when this is prepared; it is made anew when it cannot."""

    primary: Postgres
    name: str = "postgres-replica"

    @classmethod
    def of(cls, settings: StackSettings, *, durable: bool = True) -> "Replica":
        """The one of this stack."""
        return cls(
            directory=settings.home / "replica",
            run_directory=settings.home / "run" / "replica",  # sockets of its own: a server clears its directory
            log=settings.home / "log" / "postgres-replica.log",
            port=settings.port(REPLICA),
            durable=durable,
            primary=Postgres.of(settings, durable=durable),
        )

    def flags(self) -> dict[str, str]:
        """It is told here where the primary is: ports and directories may have changed since it was made."""
        where = f"host='{self.primary.socket_directory}' port={self.primary.port} user=postgres"
        return {
            **super().flags(),
            "hot_standby": "on",
            "hot_standby_feedback": "on",  # a report is not cancelled because the primary has vacuumed
            "primary_conninfo": where,
            "primary_slot_name": SLOT,
        }

    async def make(self, binaries: Path, account: Account | None) -> None:
        """The directory holds a copy of the primary that can follow it."""
        if await self._followed():
            if self.directory.exists():
                return
            await self._forget()
        shutil.rmtree(self.directory, ignore_errors=True)
        fresh = self.directory.with_name("replica.new")  # renamed when whole
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        if account:
            account.own(fresh)
        arguments = [
            *("-D", str(fresh), "--write-recovery-conf", "--create-slot", "--slot", SLOT, "--checkpoint=fast"),
            *("-h", str(self.primary.socket_directory), "-p", str(self.primary.port), "-U", "postgres"),
            *([] if self.durable else ["--no-sync"]),
        ]
        program = binaries / "pg_basebackup"
        command, identity = launch(account, [str(program), *arguments], (program, fresh))
        await run_tool(
            "PostgreSQL could not copy the primary",
            command,
            log=self.log,
            env=ENVIRONMENT,
            directory=Path("/"),
            remedy=f"See {self.log}, or start without a replica.",
            **identity,
        )
        fresh.rename(self.directory)

    async def _followed(self) -> bool:
        """Whether the primary still has all that a replica was promised. A slot that has lost some is gone after."""
        connection = await asyncpg.connect(self.primary.url, database="postgres", timeout=10)
        try:
            status = await connection.fetchval("SELECT wal_status FROM pg_replication_slots WHERE slot_name = $1", SLOT)
        finally:
            await connection.close()
        if status == "lost":
            await self._forget()
        return status not in (None, "lost")

    async def _forget(self) -> None:
        connection = await asyncpg.connect(self.primary.url, database="postgres", timeout=10)
        try:
            await connection.execute("SELECT pg_drop_replication_slot($1)", SLOT)
        finally:
            await connection.close()
