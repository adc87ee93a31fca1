"""Real servers for the tests: embedded ones, those at TEST_*_URL, or containers with TESTCONTAINERS=1.

One migrated template database is cloned for each test. Nothing is mocked; what a test starts, it stops.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import structlog
import uvicorn

from services.catalog.settings import CatalogSettings
from services.cli import migrate
from services.customers.settings import CustomersSettings
from services.embedded import issuer as issuer_process
from services.embedded.addresses import with_user
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders.settings import OrdersSettings
from tests.catalog import Catalogue, opened_catalogue
from tests.customers import Customers, opened_customers
from tests.serving import listening, serving_as
from tests.shop import AUDIENCE, Shop, opened_shop

UNUSED_KAFKA = "127.0.0.1:1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_ALL=1 a skipped test fails: it would hide that a server is missing."""
    report = yield
    if report.skipped and os.environ.get("REQUIRE_ALL") == "1":
        report.outcome = "failed"
        report.longrepr = f"skipped under REQUIRE_ALL=1: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _log_is_left_alone() -> Iterator[None]:
    """A process that routes its log here binds that of all later tests to a stream that ends with this one."""
    yield
    last = structlog.get_config()["processors"][-1]
    assert not isinstance(last, structlog.processors.JSONRenderer), "log.configure is for processes"


@pytest.fixture(scope="session")
def containers() -> Iterator[dict[str, str]]:
    """URLs of PostgreSQL, Valkey and Kafka in containers, when TESTCONTAINERS=1."""
    if os.environ.get("TESTCONTAINERS") != "1":
        yield {}
        return
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy
    from testcontainers.postgres import PostgresContainer
    from testcontainers.redis import RedisContainer

    kafka_port = free_port()  # a broker tells its clients its address, so it has to be known before it starts
    postgres = PostgresContainer("postgres:18", dbname="orders", driver=None).with_command(
        "postgres -c max_locks_per_transaction=1024 -c fsync=off"
    )
    valkey = RedisContainer("valkey/valkey:9").with_command("valkey-server --notify-keyspace-events K$")
    kafka = (
        DockerContainer("apache/kafka:4.4.0")
        .with_bind_ports(9092, kafka_port)
        .with_env("KAFKA_NODE_ID", "1")
        .with_env("KAFKA_PROCESS_ROLES", "broker,controller")
        .with_env("KAFKA_CONTROLLER_QUORUM_VOTERS", "1@localhost:9093")
        .with_env("KAFKA_CONTROLLER_LISTENER_NAMES", "CONTROLLER")
        .with_env("KAFKA_LISTENERS", "PLAINTEXT://:9092,CONTROLLER://:9093")
        .with_env("KAFKA_ADVERTISED_LISTENERS", f"PLAINTEXT://127.0.0.1:{kafka_port}")
        .with_env("KAFKA_LISTENER_SECURITY_PROTOCOL_MAP", "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT")
        .with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
        .with_env("KAFKA_MESSAGE_MAX_BYTES", "5242880")
        .with_env("KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR", "1")
        .with_env("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
        .waiting_for(LogMessageWaitStrategy("Kafka Server started"))
    )
    with postgres, valkey, kafka:
        yield {
            "postgres": postgres.get_connection_url(),
            "valkey": f"redis://{valkey.get_container_host_ip()}:{valkey.get_exposed_port(6379)}/0",
            "kafka": f"127.0.0.1:{kafka_port}",
        }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory, containers: dict[str, str]) -> AsyncIterator[Stack]:
    """PostgreSQL and Valkey for the whole session. PostgreSQL does not sync to disk here: no test cuts the power."""
    settings = StackSettings(
        home=tmp_path_factory.mktemp("stack"),
        port_base=free_port_base(),
        postgres_url=os.environ.get("TEST_POSTGRES_URL", containers.get("postgres")),
        valkey_url=os.environ.get("TEST_VALKEY_URL", containers.get("valkey")),
        kafka_url=UNUSED_KAFKA,
    )
    async with Stack(settings, processes=(), durable=False) as started:
        yield started


@pytest.fixture(scope="session")
async def kafka_url(
    tmp_path_factory: pytest.TempPathFactory, containers: dict[str, str], stack: Stack
) -> AsyncIterator[str]:
    """Kafka for the whole session, started when the first test wants it. Tests use topics of their own."""
    given = os.environ.get("TEST_KAFKA_URL", containers.get("kafka"))
    if given:
        yield given
        return
    settings = StackSettings(
        home=tmp_path_factory.mktemp("kafka"),
        port_base=free_port_base(),
        postgres_url=stack.addresses.postgres,  # the session's own, so that only Kafka is started
        valkey_url=stack.addresses.valkey,
    )
    async with Stack(settings, processes=(), durable=False) as started:
        yield started.addresses.kafka


@pytest.fixture(scope="session")
def valkey_url(stack: Stack) -> str:
    """URL of Valkey."""
    return stack.addresses.valkey


def with_database(url: str, name: str) -> str:
    """The same server, another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
async def template_database(stack: Stack) -> AsyncIterator[str]:
    """Name of a migrated database with this month's and the next months' partitions."""
    name = f"template_{secrets.token_hex(4)}"
    owner = await asyncpg.connect(stack.addresses.postgres)
    await owner.execute(f"CREATE DATABASE {name}")
    url = with_database(stack.addresses.postgres, name)
    await asyncio.to_thread(migrate.upgrade, url, role_password=stack.addresses.role_password)
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT orders.create_month((date_trunc('month', now()) + make_interval(months => ahead))::date)"
        " FROM generate_series(-1, 3) ahead"
    )
    await connection.close()
    yield name
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


@pytest.fixture
async def database_url(stack: Stack, template_database: str) -> AsyncIterator[str]:
    """URL of a fresh database, as its owner."""
    name = f"test_{secrets.token_hex(6)}"
    owner = await asyncpg.connect(stack.addresses.postgres)
    await owner.execute(f"CREATE DATABASE {name} TEMPLATE {template_database} STRATEGY file_copy")
    yield with_database(stack.addresses.postgres, name)
    await owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await owner.close()


@pytest.fixture
def as_role(stack: Stack, database_url: str) -> "AsRole":
    """URL of the test's database as one of the processes."""
    return AsRole(stack, database_url)


class AsRole:
    """Call with a role's name for the URL of the test's database as that role."""

    def __init__(self, stack: Stack, database_url: str) -> None:
        self._stack, self._database_url = stack, database_url

    def __call__(self, role: str) -> str:
        return with_user(self._database_url, role, self._stack.addresses.role_password)


@pytest.fixture
async def owner(database_url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection as the owner of the schema, to look at rows and to plant what no process may write."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
async def issuer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Path, str]]:
    """Home and URL of a token issuer that serves its keys over HTTP."""
    home = tmp_path_factory.mktemp("issuer")
    listener, url = listening()
    app = issuer_process.create_app(home, url, AUDIENCE)
    async with serving_as(uvicorn.Config(app, log_config=None, lifespan="off"), listener):
        yield home, url


@pytest.fixture
def orders_settings(as_role: AsRole, valkey_url: str, issuer: tuple[Path, str]) -> OrdersSettings:
    """Settings of orders-api on the test's database; without a cache, as tests also write behind its back."""
    return OrdersSettings(
        postgres_url=as_role("orders_api"),
        valkey_url=valkey_url,
        cache_url="",
        issuer_url=issuer[1],
        audience=AUDIENCE,
    )


@pytest.fixture
async def shop(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[Shop]:
    """orders-api on an empty database, and somebody who can use it."""
    async with opened_shop(orders_settings, issuer[0], owner) as opened:
        yield opened


@pytest.fixture
def catalog_settings(as_role: AsRole, valkey_url: str, issuer: tuple[Path, str]) -> CatalogSettings:
    """Settings of catalog-api on the test's database; without a cache, as tests also write behind its back."""
    return CatalogSettings(
        postgres_url=as_role("catalog_api"),
        valkey_url=valkey_url,
        cache_url="",
        issuer_url=issuer[1],
        audience=AUDIENCE,
    )


@pytest.fixture
async def catalogue(
    catalog_settings: CatalogSettings, issuer: tuple[Path, str], owner: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[Catalogue]:
    """catalog-api on an empty database, and somebody who may write."""
    async with opened_catalogue(catalog_settings, issuer[0], owner) as opened:
        yield opened


@pytest.fixture
def customers_settings(as_role: AsRole, valkey_url: str, issuer: tuple[Path, str]) -> CustomersSettings:
    """Settings of customers-api on the test's database, with the cache."""
    return CustomersSettings(
        postgres_url=as_role("customers_api"), valkey_url=valkey_url, issuer_url=issuer[1], audience=AUDIENCE
    )


@pytest.fixture
async def customers(
    customers_settings: CustomersSettings, issuer: tuple[Path, str], owner: "asyncpg.Connection[asyncpg.Record]"
) -> AsyncIterator[Customers]:
    """customers-api on an empty database, and somebody who may become a customer."""
    async with opened_customers(customers_settings, issuer[0], owner) as opened:
        yield opened
