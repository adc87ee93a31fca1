"""nginx of the machine as the edge of a stack, configured by infra/edge."""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from services.embedded.accounts import Account
from services.embedded.errors import StackError
from services.embedded.polling import becomes
from services.embedded.program import Program, answers
from services.embedded.settings import CATALOG, CUSTOMERS, EDGE, HOST, ORDERS, REALTIME, StackSettings

CONFIGURATION: Final = Path(__file__).resolve().parents[2] / "infra" / "edge"
_SYSTEM_DIRECTORIES: Final = "/usr/sbin:/usr/local/sbin:/opt/homebrew/bin"  # not in everybody's PATH
_ORPHANS_SECONDS: Final = 10


@dataclass(frozen=True)
class Edge:
    """One nginx on 127.0.0.1. `origins` are the ports of the upstreams of infra/edge, by name.

    What it has kept stays from one start to the next; how long it may be shown is in it.
    """

    directory: Path
    port: int
    origins: Mapping[str, int]
    name: str = "edge"

    @classmethod
    def of(cls, settings: StackSettings) -> "Edge":
        """The one of this stack."""
        offsets = {"orders": ORDERS, "catalog": CATALOG, "customers": CUSTOMERS, "realtime": REALTIME}
        origins = {name: settings.port(offset) for name, offset in offsets.items()}
        return cls(settings.home / "edge", settings.port(EDGE), origins)

    @property
    def ports(self) -> tuple[int, ...]:
        """HTTP and WebSocket."""
        return (self.port,)

    @property
    def url(self) -> str:
        """For clients."""
        return f"http://{HOST}:{self.port}"

    @property
    def access_log(self) -> Path:
        """A JSON object for each request since the last start."""
        return self.directory / "access.log"

    async def prepare(self) -> Program:
        """See `Part`."""
        binary = nginx()
        if not await becomes(self._no_orphans, _ORPHANS_SECONDS):
            raise StackError(f"nginx still works in {self.directory}", "Stop it.")
        account = Account.owning(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        if account:
            account.own(self.directory)
        self.access_log.unlink(missing_ok=True)
        shutil.copytree(CONFIGURATION, self._configuration, dirs_exist_ok=True)
        upstreams = self._configuration / "upstreams.conf"
        upstreams.write_text(re.sub(r"(upstream (\w+) {\s+server) [^;]+", self._server, upstreams.read_text()))
        site = f"listen {HOST}:{self.port};\naccess_log {self.access_log} edge;\n"
        (self._configuration / "site.conf").write_text(site)
        return Program(
            name=self.name,
            argv=(binary, "-p", f"{self.directory}/", "-c", str(self._configuration / "nginx.conf"), "-e", "stderr"),
            # nginx writes its title over its arguments and these; a shorter one would be cut, and not known as ours.
            env={"LC_ALL": "C", "PATH": os.defpath, "HOME": str(self.directory)},
            ready=self._ready,
            ports=self.ports,
            directory=self.directory,
            account=account,
            must_reach=(Path(binary), self._configuration / "nginx.conf"),
            start_seconds=10,
            grace_seconds=5,
        )

    @property
    def _configuration(self) -> Path:
        return self.directory / "configuration"

    def _server(self, found: re.Match[str]) -> str:
        return f"{found[1]} {HOST}:{self.origins[found[2]]}"

    def _no_orphans(self) -> bool:
        """Whether nothing of a former nginx is left: workers outlive a master that was killed, and keep its port."""
        for process in psutil.process_iter():
            try:
                if process.name() == "nginx" and process.cwd() == str(self.directory):
                    process.terminate()
                    return False
            except psutil.Error:
                continue
        return True

    async def _ready(self) -> bool:
        return await answers(self.port, "/healthz")


def nginx() -> str:
    """Where nginx is. StackError when it is not installed."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_DIRECTORIES}")
    if found is None:
        raise StackError("there is no nginx for the edge", "Install it (apt-get install nginx), or leave out --edge.")
    return found
