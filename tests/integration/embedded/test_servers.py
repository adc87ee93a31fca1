"""The three servers as a stack starts them: what they promise to whoever connects."""

import json
import stat
from collections.abc import Callable

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from services.embedded.postgres import Postgres
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

_LARGEST_EVENT_BYTES = 4 * 2**20


async def test_all_three_serve_stop_and_come_back_with_their_data(make: Callable[..., StackSettings]) -> None:
    settings = make()
    event = b"x" * _LARGEST_EVENT_BYTES

    async with Stack(settings, processes=(), durable=False) as stack:
        first_pids = [stack.pid(name) for name in ("postgres", "valkey", "kafka")]
        endpoints = json.loads((settings.home / "endpoints.json").read_text())
        assert endpoints == stack.endpoints
        assert set(endpoints) == {"metrics", "postgres", "valkey", "kafka"}  # only what exists
        connection = await asyncpg.connect(stack.addresses.postgres)
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await connection.close()
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.addresses.kafka)
        await admin.start()
        await admin.create_topics([NewTopic("kept", 1, 1, topic_configs={"max.message.bytes": str(5 * 2**20)})])
        await admin.close()
        producer = AIOKafkaProducer(
            bootstrap_servers=stack.addresses.kafka, enable_idempotence=True, max_request_size=5 * 2**20
        )
        await producer.start()
        await producer.send_and_wait("kept", event)
        await producer.stop()
        cache = Redis.from_url(stack.addresses.valkey)
        await cache.set("not kept", 1)
        await cache.aclose()

    assert not (settings.home / "endpoints.json").exists()
    assert not [pid for pid in first_pids if pid and psutil.pid_exists(pid)]

    async with Stack(settings, processes=(), durable=False) as stack:
        connection = await asyncpg.connect(stack.addresses.postgres)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()
        consumer = AIOKafkaConsumer(
            "kept",
            bootstrap_servers=stack.addresses.kafka,
            auto_offset_reset="earliest",
            group_id="g",
            max_partition_fetch_bytes=5 * 2**20,
        )
        await consumer.start()
        assert (await consumer.getone()).value == event
        await consumer.stop()
        cache = Redis.from_url(stack.addresses.valkey)
        assert await cache.get("not kept") is None  # a cache that came back could serve what was replaced meanwhile
        assert (await cache.config_get("maxmemory-policy"))["maxmemory-policy"] == "allkeys-lru"
        await cache.aclose()


async def test_postgres_is_durable_by_default_and_set_up_for_many_partitions(
    make: Callable[..., StackSettings],
) -> None:
    async with Stack(make(only="postgres"), processes=()) as stack:
        connection = await asyncpg.connect(stack.addresses.postgres)
        rows = await connection.fetch("SELECT name, current_setting(name) AS value FROM pg_settings")
        shown = {row["name"]: row["value"] for row in rows}
        collation = await connection.fetchrow(
            "SELECT datlocprovider::text, datlocale, pg_encoding_to_char(encoding) FROM pg_database WHERE datname = $1",
            "orders",
        )
        await connection.close()

    assert {shown[name] for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums")} == {"on"}
    assert shown["max_locks_per_transaction"] == "1024"
    assert shown["TimeZone"] == "UTC"
    assert shown["shared_preload_libraries"] == "pg_stat_statements"
    assert shown["server_version_num"].startswith("18")
    assert collation is not None
    assert tuple(collation) == ("b", "C.UTF-8", "UTF8")


async def test_socket_is_for_its_owner_tcp_for_passwords_and_inspection_only_reads(
    make: Callable[..., StackSettings],
) -> None:
    settings = make(only="postgres")
    async with Stack(settings, processes=(), durable=False) as stack:
        connection = await asyncpg.connect(stack.addresses.postgres)
        await connection.execute("CREATE SCHEMA s; CREATE TABLE s.t (x int); CREATE ROLE orders_api LOGIN")
        shown = await connection.fetchval("SHOW unix_socket_directories")
        await connection.close()
        assert (await _user(stack.addresses.postgres_as("orders_api"))) == "orders_api"
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(
                host="127.0.0.1", port=settings.port_base + 1032, user="orders_api", database="orders", password="wrong"
            )

        inspector = await asyncpg.connect(str(stack.endpoints["postgres"]))
        assert await inspector.fetch("SELECT * FROM s.t") == []
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            await inspector.execute("INSERT INTO s.t VALUES (1)")
        await inspector.execute("SET default_transaction_read_only = off")  # not what keeps it out
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await inspector.execute("INSERT INTO s.t VALUES (1)")
        await inspector.close()

        home = settings.home
        directory = Postgres.of(settings).socket_directory  # where it is hangs on how long the path of home is
        assert shown.strip('"') == str(directory)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "secrets.json").stat().st_mode) == 0o600
        assert stat.S_IMODE((home / "endpoints.json").stat().st_mode) == 0o600


async def test_a_home_too_long_for_a_socket_address_starts_and_comes_back(make: Callable[..., StackSettings]) -> None:
    settings = make(home="a home, " + "long" * 25, only="postgres")
    for _ in range(2):
        async with Stack(settings, processes=(), durable=False) as stack:
            assert (await _user(stack.addresses.postgres)) == "postgres"


async def test_two_stacks_run_side_by_side(make: Callable[..., StackSettings]) -> None:
    async with (
        Stack(make(home="one", only="postgres valkey"), processes=(), durable=False) as one,
        Stack(make(home="two", only="postgres valkey"), processes=(), durable=False) as two,
    ):
        for stack in (one, two):
            cache = Redis.from_url(stack.addresses.valkey)
            await cache.incr("seen")
            assert await cache.get("seen") == b"1"
            await cache.aclose()
            assert (await _user(stack.addresses.postgres)) == "postgres"


async def _user(url: str) -> str:
    connection = await asyncpg.connect(url)
    try:
        return str(await connection.fetchval("SELECT current_user"))
    finally:
        await connection.close()
