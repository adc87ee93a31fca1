"""The processes of a stack, and how each is started."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.embedded.addresses import Addresses
from services.embedded.errors import StackError
from services.embedded.keys import DEVELOPMENT_CLIENT, callback_secret, clients
from services.embedded.program import Program, answers
from services.embedded.settings import (
    CATALOG,
    CUSTOMERS,
    HOST,
    ISSUER,
    METRICS,
    ORDERS,
    PAYMENTS,
    REALTIME,
    SANDBOX,
    StackSettings,
)


@dataclass(frozen=True)
class Process:
    """A console script of ours. Ready when `ready_path` answers on its port, else when its metrics do, else at once.

    `port` and `metrics` are offsets, written down rather than counted: a new process must not move another's port.
    `argv` replaces the script of that name. `callbacks`: it signs or verifies what a payment provider calls back with.
    `client`: it calls other services in its own name. `reports`: it reads the replica, where there is one.
    """

    name: str
    role: str | None = None
    port: int | None = None
    metrics: int | None = None
    ready_path: str | None = None
    endpoint: str | None = None
    scheme: str = "http"
    callbacks: bool = False
    client: bool = False
    reports: bool = False
    argv: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    grace_seconds: float = 15


# May do more than a process should; who needs one is given it.
_SECRETS = {
    "ORDERS_POSTGRES_URL",
    "ORDERS_REPLICA_URL",
    "ORDERS_ROLE_PASSWORD",
    "ORDERS_CALLBACK_SECRET",
    "ORDERS_CLIENT_SECRET",
}

# Stopped from the end: first nobody takes orders any more, and the relay has time to publish the last.
PROCESSES = (
    Process("token-issuer", port=ISSUER, ready_path="/.well-known/openid-configuration", endpoint="issuer"),
    Process("payments-sandbox", port=SANDBOX, ready_path="/healthz", endpoint="provider", callbacks=True),
    Process("outbox-relay", role="outbox_relay", metrics=METRICS + 2),
    Process(
        "payments-worker",
        role="payments_worker",
        port=PAYMENTS,
        metrics=METRICS + 6,
        ready_path="/readyz",
        endpoint="payments",
        callbacks=True,
        client=True,
    ),
    Process("orders-maintenance", role="orders_maintenance", metrics=METRICS + 1),
    Process("orders-projector", role="orders_projector", metrics=METRICS + 4),
    Process(
        "catalog-api", role="catalog_api", port=CATALOG, metrics=METRICS + 3, ready_path="/readyz", endpoint="catalog"
    ),
    Process(
        "customers-api",
        role="customers_api",
        port=CUSTOMERS,
        metrics=METRICS + 7,
        ready_path="/readyz",
        endpoint="customers",
    ),
    Process(
        "orders-api",
        role="orders_api",
        port=ORDERS,
        metrics=METRICS,
        ready_path="/readyz",
        endpoint="orders",
        reports=True,
    ),
    Process(
        "realtime-gateway",
        port=REALTIME,
        metrics=METRICS + 5,
        ready_path="/readyz",
        endpoint="realtime",
        scheme="ws",
    ),
)


@dataclass(frozen=True)
class ProcessPart:
    """A process of one stack; see `Part`."""

    process: Process
    settings: StackSettings
    addresses: Addresses

    @property
    def name(self) -> str:
        """The process's."""
        return self.process.name

    @property
    def ports(self) -> tuple[int, ...]:
        """HTTP and metrics, where it has them."""
        return tuple(port for port in (self.port, self.metrics_port) if port)

    @property
    def port(self) -> int:
        """For HTTP, 0 for none."""
        return 0 if self.process.port is None else self.settings.port(self.process.port)

    @property
    def metrics_port(self) -> int:
        """For Prometheus, 0 for none."""
        return 0 if self.process.metrics is None else self.settings.port(self.process.metrics)

    @property
    def url(self) -> str:
        """Of its HTTP server."""
        return f"{self.process.scheme}://{HOST}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """What Prometheus reads."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    async def prepare(self) -> Program:
        """See `Part`. Its environment names the servers, the database as its own role."""
        where, role, settings = self.addresses, self.process.role, self.settings
        return Program(
            name=self.name,
            argv=self.process.argv or (str(_script(self.name)),),
            env={
                **{name: value for name, value in os.environ.items() if name not in _SECRETS},
                **({"ORDERS_POSTGRES_URL": where.postgres_as(role)} if role else {}),
                **({"ORDERS_REPLICA_URL": where.replica} if self.process.reports and where.replica else {}),
                "ORDERS_VALKEY_URL": where.valkey,
                "ORDERS_KAFKA_URL": where.kafka,
                "ORDERS_ISSUER_URL": where.issuer,
                "ORDERS_ORDERS_URL": f"http://{HOST}:{settings.port(ORDERS)}",
                "ORDERS_PROVIDER_URL": settings.provider_url or f"http://{HOST}:{settings.port(SANDBOX)}",
                **(self._callbacks() if self.process.callbacks else {}),
                **(self._client() if self.process.client else {}),
                "ORDERS_METRICS_URLS": ",".join(
                    f"http://{HOST}:{settings.port(each.metrics)}/metrics"
                    for each in PROCESSES
                    if each.metrics is not None
                ),
                "ORDERS_HOST": HOST,
                "ORDERS_PORT": str(self.port),
                "ORDERS_METRICS_PORT": str(self.metrics_port),
                "ORDERS_HOME": str(settings.home),
                **self.process.env,
            },
            ready=self._ready,
            ports=self.ports,
            directory=settings.home,
            grace_seconds=self.process.grace_seconds,
        )

    def _callbacks(self) -> dict[str, str]:
        given = self.settings.callback_secret
        return {
            "ORDERS_CALLBACK_URL": f"http://{HOST}:{self.settings.port(PAYMENTS)}/callbacks/sandbox",
            "ORDERS_CALLBACK_SECRET": given.get_secret_value() if given else callback_secret(self.settings.home),
        }

    def _client(self) -> dict[str, str]:
        if self.settings.issuer_url:  # which has clients of its own
            names = ("ORDERS_CLIENT_ID", "ORDERS_CLIENT_SECRET")
            return {name: os.environ[name] for name in names if name in os.environ}
        secret = clients(self.settings.home)[DEVELOPMENT_CLIENT]
        return {"ORDERS_CLIENT_ID": DEVELOPMENT_CLIENT, "ORDERS_CLIENT_SECRET": secret}

    async def _ready(self) -> bool:
        if self.process.ready_path:
            return await answers(self.port, self.process.ready_path)
        return not self.metrics_port or await answers(self.metrics_port, "/metrics")


def _script(name: str) -> Path:
    script = Path(sys.executable).with_name(name)  # unresolved: a virtual environment's python is a link out of it
    if not script.is_file():
        raise StackError(f"there is no {script}", "Install this project into the environment that runs it: make setup.")
    return script
