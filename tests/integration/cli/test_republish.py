"""`orders republish`: what the relay once brought, again: the same messages, in order, whole, as often as one likes."""

import asyncio
import gc
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest
from aiokafka import ConsumerRecord

from services.cli import republish
from services.cli.republish import Republished
from services.common import clock, ids, stream
from services.common.db import Database
from services.common.stream import StreamError
from services.contracts.envelope import CATALOG_TOPIC, ORDERS_TOPIC
from services.embedded.supervisor import Stack
from services.orders.settings import OrdersSettings
from services.relay.settings import RelaySettings
from tests.conftest import UNUSED_KAFKA, AsRole
from tests.consuming import Group
from tests.faults.waiting import eventually
from tests.integration.common.conftest import Ledger
from tests.integration.relay.conftest import kafka_beside, listening, relaying
from tests.shop import Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
LONG_AGO, FAR_OFF = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
ALWAYS = (LONG_AGO, FAR_OFF)


@pytest.fixture
def topic() -> str:
    """The name of a topic that is not there yet."""
    return f"test.{secrets.token_hex(4)}"


async def again(database_url: str, kafka_url: str, topic: str, **options: Any) -> Republished:
    """What a run did."""
    result = Republished(topic)
    await republish.run(database_url, kafka_url, result, **{"within": ALWAYS, **options})
    return result


async def story(shop: Shop, product: str) -> dict[str, Any]:
    """An order with four events: shipped in two parts, delivered."""
    order = await shop.placed((product, 2))
    for command, body in (("ship", {"items": [{"line_no": 1, "quantity": 1}]}), ("ship", {}), ("deliver", {})):
        order = (await shop.command(order, command, body)).json()
    assert order["version"] == 4
    return order


def seen(record: ConsumerRecord) -> tuple[Any, ...]:
    """All of a message but where it lies."""
    return record.partition, record.key, record.value, record.headers


async def test_every_event_comes_as_the_relay_brought_it_and_in_its_order(
    shop: Shop,
    as_role: AsRole,
    valkey_url: str,
    kafka_url: str,
    database_url: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(republish, "PAGE_ORDERS", 4)
    monkeypatch.setattr(republish, "BATCH_MESSAGES", 7)  # so that orders lie across batches, and end with pages
    monkeypatch.setattr(republish, "FETCH_ROWS", 5)
    product = await shop.product()
    settings = RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url=kafka_url)
    async with listening(kafka_url) as live, listening(kafka_url, topic) as anew:
        async with relaying(settings):
            orders = await asyncio.gather(*(story(shop, product) for _ in range(20)))
            for order in orders:
                await live.of(order["order_id"], 4)
        result = await again(database_url, kafka_url, topic)
        assert (result.events, result.orders, result.left) == (80, 20, [])
        for order in orders:
            before, after = await live.of(order["order_id"], 4), await anew.of(order["order_id"], 4)
            assert [seen(record) for record in after] == [seen(record) for record in before]
            assert anew.versions(order["order_id"]) == [1, 2, 3, 4]
        await anew.poll()
        assert sum(len(records) for records in anew.seen.values()) == 80


@pytest.fixture
async def past(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner
) -> AsyncIterator[tuple[datetime, list[timedelta], Shop]]:
    """A shop whose clock stands in last month, and goes by what is in the list."""
    start = clock.add_months(clock.month_of(clock.now()), -1) + timedelta(days=20)
    later = [timedelta()]
    async with opened_shop(orders_settings, issuer[0], owner, lambda: start + later[0]) as shop:
        yield start, later, shop


async def test_the_time_is_that_of_the_event_whenever_the_order_was_made(
    shop: Shop, past: tuple[datetime, list[timedelta], Shop], kafka_url: str, database_url: str, topic: str
) -> None:
    start, _, then = past
    old, idle = await then.placed(), await then.placed()
    began = clock.now()
    shop.buyer = then.buyer
    await shop.command(old, "ship")
    new = await shop.placed()
    async with listening(kafka_url, topic) as anew:
        result = await again(database_url, kafka_url, topic, within=(began, FAR_OFF))
        assert (result.events, result.orders) == (2, 2)
        await anew.of(old["order_id"], 1)
        await anew.of(new["order_id"], 1)
        assert anew.versions(old["order_id"]) == [2]
        # Half-open: what occurred at `to` is not of it, what occurred at `from` is.
        assert (await again(database_url, kafka_url, topic, within=(LONG_AGO, start))).events == 0
        result = await again(database_url, kafka_url, topic, within=(start, start + timedelta(milliseconds=1)))
        assert (result.events, result.orders) == (2, 2)
        await anew.of(idle["order_id"], 1)
        await anew.of(old["order_id"], 2)
        assert anew.versions(old["order_id"]) == [2, 1]
        assert anew.versions(idle["order_id"]) == [1]


async def test_clocks_that_differ_leave_no_gap_between_an_orders_versions(
    past: tuple[datetime, list[timedelta], Shop], kafka_url: str, database_url: str, topic: str
) -> None:
    start, later, shop = past
    order = await shop.placed()
    for command, seconds in (("ship", 10), ("deliver", 5)):  # delivered by a host whose clock is behind
        later[0] = timedelta(seconds=seconds)
        order = (await shop.command(order, command)).json()
    middle = start + timedelta(seconds=7)
    async with listening(kafka_url, topic) as anew:
        await again(database_url, kafka_url, topic, within=(middle, FAR_OFF))
        await anew.of(order["order_id"], 2)
        assert anew.versions(order["order_id"]) == [2, 3]
        await again(database_url, kafka_url, topic, within=(LONG_AGO, middle))
        await anew.of(order["order_id"], 5)
        assert anew.versions(order["order_id"]) == [2, 3, 1, 2, 3]


async def test_only_the_types_that_were_asked_for_come(
    shop: Shop, kafka_url: str, database_url: str, topic: str
) -> None:
    order = await story(shop, await shop.product())
    async with listening(kafka_url, topic) as anew:
        result = await again(database_url, kafka_url, topic, types=["order.placed", "order.delivered"])
        assert (result.events, result.orders) == (2, 1)
        records = await anew.of(order["order_id"], 2)
        assert [dict(record.headers)["ce_type"] for record in records] == [b"order.placed", b"order.delivered"]


async def test_a_consumer_with_an_inbox_takes_a_second_run_for_nothing(
    shop: Shop, kafka_url: str, database_url: str, owner: Owner, topic: str
) -> None:
    product = await shop.product()
    orders = [await story(shop, product) for _ in range(5)]
    await owner.execute("CREATE TABLE orders.ledger (id BIGSERIAL PRIMARY KEY, key TEXT, version BIGINT)")
    database = Database(database_url, application_name="test", size_min=0, size_max=2)
    await database.open()
    ledger = Ledger(database, owner)
    await again(database_url, kafka_url, topic)

    async def handled(messages: int) -> None:
        async def reached() -> bool:
            return len(ledger.handled) >= messages

        await eventually(reached, f"{messages} messages")

    async with Group(kafka_url, [topic], ledger.handle).member():
        await handled(20)
        assert await ledger.count() == 20
        result = await again(database_url, kafka_url, topic)
        assert result.events == 20
        await shop.placed((product, 1))
        await again(database_url, kafka_url, topic)
        await handled(61)
    await database.close()
    assert await ledger.count() == 21
    for order in orders:
        assert await ledger.versions(order["order_id"]) == [1, 2, 3, 4]


async def test_when_kafka_dies_in_between_it_says_what_was_acknowledged_and_is_run_again(
    shop: Shop,
    stack: Stack,
    tmp_path: Path,
    database_url: str,
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()  # what earlier tests have left is not of this one
    caplog.clear()
    monkeypatch.setattr(stream, "PUBLISH_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr(stream, "REQUEST_TIMEOUT_MS", 500)  # so that the driver tries again, and is stopped at that
    monkeypatch.setattr(republish, "BATCH_MESSAGES", 3)
    product = await shop.product()
    orders = [await story(shop, product) for _ in range(5)]
    async with kafka_beside(stack, tmp_path) as own:
        url = own.addresses.kafka
        async with listening(url, topic) as anew:
            result = Republished(topic)

            def freeze(_what: str, _done: int, _total: int) -> None:
                if result.events == 6:
                    own.send_signal("kafka", signal.SIGSTOP)

            try:
                with pytest.raises(StreamError):
                    await republish.run(database_url, url, result, within=ALWAYS, progress=freeze)
            finally:
                own.send_signal("kafka", signal.SIGCONT)
            assert 6 <= result.events < 20  # what was on its way may have been acknowledged yet
            gc.collect()
            told = [
                record for record in caplog.records if record.name == "asyncio" and "abandoned" in str(record.exc_info)
            ]
            assert told == [], "a line of ours says it, and nothing else does"
            assert (await again(database_url, url, topic)).events == 20
            for order in orders:

                async def whole(order_id: str = order["order_id"]) -> bool:
                    await anew.poll()
                    return anew.versions(order_id)[-4:] == [1, 2, 3, 4]

                await eventually(whole, f"all of {order['order_id']}")
            assert sum(len(records) for records in anew.seen.values()) >= result.events + 20


async def test_an_event_that_cannot_go_leaves_its_order_and_no_other(
    shop: Shop, kafka_url: str, database_url: str, owner: Owner, topic: str
) -> None:
    product = await shop.product()
    left, other = await shop.placed((product, 1)), await story(shop, product)
    key = ids.order_key(ids.from_text(left["order_id"]))
    for version, text in ((2, "x" * stream.MESSAGE_BYTES_MAX), (3, "y")):
        await owner.execute(
            "INSERT INTO orders.order_events"
            " SELECT order_id, created_at, shard, $2, event_id, type, jsonb_build_object('much', $3::text), actor,"
            " traceparent, occurred_at FROM orders.order_events WHERE order_id = $1 AND version = 1",
            *(key.order_id, version, text),
        )
    async with listening(kafka_url, topic) as anew:
        result = await again(database_url, kafka_url, topic)
        assert (result.events, result.orders) == (5, 2)
        (line,) = result.left
        assert line.startswith(f"{left['order_id']} from version 2 on: ")
        await anew.of(other["order_id"], 4)
        await anew.poll()
        assert anew.versions(left["order_id"]) == [1]
    done = await command(database_url, kafka_url, "--from", "2020-01-01T00:00:00Z", "--topic", topic)
    assert done.returncode == 1
    assert f"left: {left['order_id']}" in done.stdout.decode()


async def command(database_url: str, kafka_url: str, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """`orders republish`, as an operator runs it."""
    return await asyncio.to_thread(
        subprocess.run,
        [str(Path(sys.executable).with_name("orders")), "republish", *arguments],
        env={**os.environ, "ORDERS_POSTGRES_URL": database_url, "ORDERS_KAFKA_URL": kafka_url},
        capture_output=True,
        check=False,
    )


async def test_the_command_publishes_to_a_topic_of_its_own_unless_told(
    shop: Shop, kafka_url: str, database_url: str
) -> None:
    order = await story(shop, await shop.product())
    async with listening(kafka_url) as live, listening(kafka_url, republish.OWN_TOPIC) as anew:
        done = await command(database_url, kafka_url, "--from", "2020-01-01T01:00:00+01:00", "--json")
        assert done.returncode == 0, done.stderr
        told = orjson.loads(done.stdout)
        assert told.pop("seconds") > 0
        assert told == {"topic": "orders.events.v1.republished", "events": 4, "orders": 1, "as_of": None, "left": []}
        await anew.of(order["order_id"], 4)
        await live.poll()
        assert live.versions(order["order_id"]) == []


async def test_to_the_live_topic_it_does_not_overtake_what_the_relay_has_yet_to_bring(
    shop: Shop, kafka_url: str, database_url: str
) -> None:
    order = await shop.placed()
    began = clock.to_text(clock.now() + timedelta(milliseconds=1))
    live = ("--topic", ORDERS_TOPIC)
    done = await command(database_url, kafka_url, "--from", began, "--to", clock.to_text(FAR_OFF), *live)
    assert done.returncode == 2
    assert f"has yet to publish events from {order['created_at']} on" in done.stderr.decode()
    assert "0 events of 0 orders are on orders.events.v1" in done.stderr.decode()
    async with listening(kafka_url) as topic:
        done = await command(database_url, kafka_url, "--from", order["created_at"], *live)
        assert done.returncode == 0, done.stderr
        assert "1 events of 1 orders are on orders.events.v1" in done.stdout.decode()
        await topic.of(order["order_id"], 1)


async def test_kafka_away_is_told_in_a_line(database_url: str) -> None:
    done = await command(database_url, UNUSED_KAFKA, "--from", "2020-01-01T00:00:00Z")
    assert done.returncode == 2
    *_, first, last = done.stderr.decode().strip().splitlines()  # before them what the driver logs
    assert first.startswith(f"StreamError: Kafka at {UNUSED_KAFKA}: ")
    assert last == (
        "It ended early: 0 events of 0 orders are on orders.events.v1.republished (0 events/s). Run it again."
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--from"),
        (["--from", "2026-11-22T18:16:50"], "with an offset"),
        (["--from", "yesterday"], "with an offset"),
        (["--from", "0001-01-01T00:00:00+12:00"], "with an offset"),
        (["--from", "2026-11-22T18:16:50Z", "--to", "2026-11-22T19:16:50+01:00"], "--to is not after --from"),
        (["--from", "2026-11-22T18:16:50Z", "--type", "order.painted"], "order.placed"),
        (["--from", "2026-11-22T18:16:50Z", "--topic", CATALOG_TOPIC], "not a topic of orders"),
    ],
)
async def test_what_makes_no_sense_is_refused_before_anything_is_touched(arguments: list[str], reason: str) -> None:
    done = await command("postgresql://127.0.0.1:1/none", UNUSED_KAFKA, *arguments)
    assert done.returncode == 2
    assert reason in " ".join(done.stderr.decode().replace("│", " ").split())


async def test_to_the_live_topic_it_does_not_overtake_what_the_relay_has_parked(
    shop: Shop, kafka_url: str, database_url: str, owner: Owner
) -> None:
    await shop.placed()
    await owner.execute(
        "INSERT INTO relay.parked (outbox, aggregate_id, position, version, reason, content, parked_at)"
        " SELECT 'orders', order_id, position, version, 'poison', to_jsonb(o), now() FROM orders.outbox o"
    )
    await owner.execute("DELETE FROM orders.outbox")
    done = await command(database_url, kafka_url, "--from", "2020-01-01T00:00:00Z", "--topic", ORDERS_TOPIC)
    assert done.returncode == 2
    assert "has parked events of 1 orders" in done.stderr.decode()
