"""A whole stack at work, whose parts others reach by proxies, so that each can be killed, frozen and slowed alone."""

import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import asyncpg
import httpx

from services.embedded.addresses import REPORTS_ROLE, with_user
from services.embedded.kafka import METADATA_REQUEST
from services.embedded.postgres import DATABASE
from services.embedded.processes import PROCESSES, Process
from services.embedded.room import free_port_base
from services.embedded.settings import (
    CATALOG,
    CUSTOMERS,
    HOST,
    KAFKA,
    METRICS,
    POSTGRES,
    REALTIME,
    REPLICA,
    SANDBOX,
    VALKEY,
    StackSettings,
)
from services.embedded.supervisor import Stack
from tests.faults.buyers import Asked
from tests.faults.conftest import migrated
from tests.faults.ledger import stock_up
from tests.faults.load import Load, loaded
from tests.faults.parts import Part
from tests.faults.screens import Screen, looking, of_all
from tests.faults.toxiproxy import Proxy, proxied, toxiproxy

CLIENTS: Final = 3  # on account, and nothing makes them wait but orders-api
PAYERS: Final = 2
METHODS: Final = ("pm_ok", "pm_declined", "pm_twice")
THINK_SECONDS: Final = 0.1  # bounds the load: what is tested is not speed
IMPATIENT: Final = "impatient"
PATIENCE_SECONDS: Final = 1  # of the orders it takes, for their payment
_IMPATIENT_PORT, _PROXY_API, _PROXIES = 10, METRICS + 16, METRICS + 17
_PASSWORD: Final = "of every role"  # roles that come by TCP need one
_SSL_REQUEST: Final = struct.pack(">ii", 8, 80877103)  # PostgreSQL answers it with one byte
_HEALTH_REQUEST: Final = b"GET /healthz HTTP/1.0\r\n\r\n"
# So that what was given up is tried again within seconds.
_PATIENCE: Final = {
    "payments-worker": {
        "ORDERS_PROVIDER_DEADLINE_SECONDS": "2",
        "ORDERS_PROVIDER_RESET_SECONDS": "1",
        "ORDERS_STEP_LEASE_SECONDS": "5",
        "ORDERS_RETRY_SECONDS_MAX": "1",
    },
    "orders-maintenance": {"ORDERS_EXPIRY_INTERVAL_SECONDS": "0.5", "ORDERS_HEARTBEAT_INTERVAL_SECONDS": "0.5"},
}


@dataclass
class Whole:
    """The stack under its load. What the tests themselves order is one buyer's, who looks at `screen`."""

    stack: Stack
    load: Load
    parts: Mapping[str, Part]
    client: httpx.AsyncClient
    token: str
    screen: Screen
    product: str  # that nobody buys but the tests
    killed: Counter[str] = field(default_factory=Counter)  # processes, by the tests
    figures: list[str] = field(default_factory=list)  # for whoever reads the run

    @property
    def url(self) -> str:
        """Of orders-api."""
        return self.load.url

    async def get(self, path: str, *, endpoint: str = "orders", scope: str = "orders:read") -> httpx.Response:
        """What orders-api answers the buyer, if no other is named."""
        token = self.token if scope == "orders:read" else self.load.buyers.token(scope)
        where = str(self.stack.endpoints[endpoint]).replace("ws:", "http:")
        return await self.client.get(where + path, headers={"Authorization": f"Bearer {token}"})

    def asked(self, method: str | None = None) -> Asked:
        """An order of the product that is about to be placed."""
        return self.load.buyers.placement(product=self.product, token=self.token, method=method)

    async def placed(self, method: str | None = None, *, endpoint: str = "orders") -> str:
        """A new order's id."""
        url = str(self.stack.endpoints[endpoint])
        order = await self.load.buyers.insist(self.asked(method), lambda: url)
        self.load.versions[order["order_id"]] = 1
        return str(order["order_id"])

    async def cancelled(self, order_id: str) -> None:
        """A new order has been cancelled."""
        asked = self.load.buyers.command({"order_id": order_id, "version": 1}, "cancel", self.token)
        await self.load.buyers.insist(asked, lambda: self.url)
        self.load.versions[order_id] = 2


class _Ways:
    """Proxies, each on the next port."""

    def __init__(self, api: httpx.AsyncClient, settings: StackSettings) -> None:
        self._api, self._settings = api, settings
        self._offsets = count(_PROXIES)

    async def to(self, name: str, offset: int) -> Proxy:
        """To what has that offset."""
        port = self._settings.port
        return await proxied(self._api, name, listen=port(next(self._offsets)), upstream=port(offset))


@asynccontextmanager
async def whole(home: Path, program: Path) -> AsyncIterator[Whole]:
    """All of `orders up --replica` behind `program`, Toxiproxy, under load."""
    base = free_port_base()
    settings = StackSettings(home=home, port_base=base, kafka_advertised=f"{HOST}:{base + _PROXIES}")
    async with toxiproxy(program, settings.port(_PROXY_API), home.with_name("toxiproxy.log")) as api:
        ways = _Ways(api, settings)
        kafka = await ways.to("kafka", KAFKA)  # the first, as it is advertised
        fronts = {
            name: await ways.to(name, offset)
            for name, offset in {
                "cache": VALKEY,
                "replica": REPLICA,
                "provider": SANDBOX,
                "catalogue": CATALOG,
                "customers": CUSTOMERS,
                "realtime-gateway": REALTIME,
            }.items()
        }
        everybody = [*PROCESSES, _impatient()]
        primary = {one.name: await ways.to(f"primary of {one.name}", POSTGRES) for one in everybody if one.role}
        processes = [_by_proxies(one, fronts, primary.get(one.name)) for one in everybody]
        prepare = partial(migrated, role_password=_PASSWORD)
        async with Stack(settings, processes=processes, prepare=prepare, replica=True, healthy_seconds=0.5) as stack:
            parts = _parts(kafka, fronts, primary)
            async with _at_work(stack, parts, fronts["realtime-gateway"]) as at_work:
                yield at_work


@asynccontextmanager
async def _at_work(stack: Stack, parts: Mapping[str, Part], gateway: Proxy) -> AsyncIterator[Whole]:
    owner = await asyncpg.connect(stack.addresses.postgres)
    (product,) = await stock_up(owner, products=1, on_hand=1_000_000)
    await owner.close()
    screens_url = f"ws://{HOST}:{gateway.listen}"
    async with (
        httpx.AsyncClient(timeout=10) as client,
        loaded(
            stack,
            CLIENTS,
            payers=PAYERS,
            methods=METHODS,
            looks=True,
            watched=0.0,
            think_seconds=THINK_SECONDS,
            screens_url=screens_url,
        ) as load,
    ):
        token = load.buyers.token()
        async with looking(of_all(screens_url, token)) as screen:
            load.own.append(screen)
            yield Whole(stack, load, parts, client, token, screen, product)


def _parts(kafka: Proxy, fronts: Mapping[str, Proxy], primary: Mapping[str, Proxy]) -> dict[str, Part]:
    parts = [
        Part("cache", ("valkey",), (fronts["cache"],), request=b"PING\r\n"),
        Part("kafka", ("kafka",), (kafka,), request=METADATA_REQUEST),
        Part("primary", ("postgres",), tuple(primary.values()), request=_SSL_REQUEST),
        Part("replica", ("postgres-replica",), (fronts["replica"],), request=_SSL_REQUEST),
        Part("provider", ("payments-sandbox",), (fronts["provider"],), request=_HEALTH_REQUEST),
        Part(
            "catalogue, customers",
            ("catalog-api", "customers-api"),
            (fronts["catalogue"], fronts["customers"]),
            request=_HEALTH_REQUEST,
        ),
        *(
            Part(worker, (worker,), backs=(primary[worker],), request=_SSL_REQUEST)
            for worker in ("outbox-relay", "orders-projector", "payments-worker", "orders-maintenance")
        ),
        Part("realtime-gateway", ("realtime-gateway",), (fronts["realtime-gateway"],), request=_HEALTH_REQUEST),
    ]
    return {part.name: part for part in parts}


def _by_proxies(process: Process, fronts: Mapping[str, Proxy], primary: Proxy | None) -> Process:
    """The same, told to reach others by these."""
    told = {
        **process.env,
        **_PATIENCE.get(process.name, {}),
        "ORDERS_VALKEY_URL": f"redis://{HOST}:{fronts['cache'].listen}/0",
        "ORDERS_PROVIDER_URL": f"http://{HOST}:{fronts['provider'].listen}",
    }
    if process.role and primary:
        told["ORDERS_POSTGRES_URL"] = _database(primary, process.role)
    if process.reports:
        told["ORDERS_REPLICA_URL"] = _database(fronts["replica"], REPORTS_ROLE)
    return replace(process, env=told)


def _database(proxy: Proxy, role: str) -> str:
    return with_user(f"postgresql://{HOST}:{proxy.listen}/{DATABASE}?sslmode=disable", role, _PASSWORD)


def _impatient() -> Process:
    """orders-api once more, whose orders expire soon."""
    return Process(
        f"orders-api-{IMPATIENT}",
        role="orders_api",
        port=_IMPATIENT_PORT,
        metrics=METRICS + 15,
        ready_path="/readyz",
        endpoint=IMPATIENT,
        argv=(str(Path(sys.executable).with_name("orders-api")),),
        env={"ORDERS_PENDING_EXPIRES_AFTER": f"PT{PATIENCE_SECONDS}S"},
    )
