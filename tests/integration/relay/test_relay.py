"""From the outbox to Kafka: in order, whole, woken, and past whatever dies."""

import asyncio
import gc
import os
import signal
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import orjson
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from services.common import ids, publisher, stream
from services.common.outbox import Wake
from services.common.publisher import Publisher, TooLargeError
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from services.relay.outboxes import ORDERS, OUTBOXES
from services.relay.settings import RelaySettings
from tests.faults.waiting import eventually
from tests.integration.relay.conftest import Topic, connected, kafka_beside, listening, metric, relaying
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PRODUCER_TIMEOUT_SECONDS = 1.0


async def _empty(owner: Owner) -> bool:
    return not await owner.fetchval("SELECT count(*) FROM orders.outbox")


async def _delivered(shop: Shop, product: str = "") -> dict[str, Any]:
    """An order with three events."""
    order = await shop.placed((product or await shop.product(), 1))
    order = (await shop.command(order, "ship", {"tracking": "T-1"})).json()
    order = (await shop.command(order, "deliver")).json()
    assert order["version"] == 3
    return dict(order)


def _polls() -> float:
    return metric("db_query_seconds_count", statement="orders_outbox_read")


async def _polled(times: int = 1) -> None:
    """The relay has looked so many times more."""
    goal = _polls() + times

    async def reached() -> bool:
        return _polls() >= goal

    await eventually(reached, "a poll")


async def test_events_come_in_order_with_their_headers_and_the_same_bytes_the_api_shows(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    traceparent = f"00-{uuid.uuid4().hex}-{'1' * 16}-01"
    order = (await shop.place((await shop.product(), 1), headers={"traceparent": traceparent})).json()
    order = (await shop.command(order, "ship")).json()
    order = (await shop.command(order, "deliver")).json()
    async with relaying(settings):
        records = await topic.of(order["order_id"], 3)
        await eventually(lambda: _empty(owner), "published rows are deleted")
    events = (await shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]
    assert [event["version"] for event in events] == [1, 2, 3]
    assert [orjson.loads(record.value) for record in records] == events
    assert len({record.partition for record in records}) == 1
    for record, event in zip(records, events, strict=True):
        headers = {name: value.decode() for name, value in record.headers}
        trace = headers.pop("traceparent")
        assert headers == {
            "ce_specversion": "1.0",
            "ce_id": event["event_id"],
            "ce_type": event["type"],
            "ce_source": "/orders",
            "ce_subject": order["order_id"],
            "ce_time": event["occurred_at"],
            "ce_sequence": f"{event['version']:020d}",
            "ce_partitionkey": order["order_id"],
            "content-type": "application/json",
        }
        assert len(record.headers) == len(headers) + 1, "a header twice"
        assert (trace == traceparent) == (event["version"] == 1)
        assert len(trace) == 55


async def test_many_orders_at_once_each_keep_their_order(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    product = await shop.product()
    async with relaying(settings, batch_rows_per_slice=3):  # so that an order's rows fall into several batches
        orders = await asyncio.gather(*(_delivered(shop, product) for _ in range(40)))
        for order in orders:
            await topic.of(order["order_id"], 3, seconds=30)
        await eventually(lambda: _empty(owner), "published rows are deleted")
    await topic.poll()
    assert [topic.versions(order["order_id"]) for order in orders] == [[1, 2, 3]] * len(orders)


NEVER_LOOKS = {"poll_seconds_max": 60.0, "beat_seconds": 60.0, "lease_seconds": 180.0}


async def test_a_writer_s_call_wakes_the_relay_and_costs_one_read(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    orders = 10
    async with relaying(settings, **NEVER_LOOKS):
        await topic.of((await shop.placed())["order_id"], 1)
        before = _polls()
        for _ in range(orders):
            await topic.of((await shop.placed())["order_id"], 1)
            await eventually(lambda: _empty(owner), "it is deleted")
        assert _polls() - before <= orders + 3, "more than the calls, and what the start has left: it polls after them"


async def test_orders_that_come_soon_after_a_read_share_the_next(
    shop: Shop, settings: RelaySettings, topic: Topic
) -> None:
    async with relaying(settings, **NEVER_LOOKS, gather_seconds=1.0):
        await topic.of((await shop.placed())["order_id"], 1)
        before = _polls()
        for order in [await shop.placed() for _ in range(10)]:
            await topic.of(order["order_id"], 1)
        assert _polls() - before <= 3


async def test_rows_that_no_call_was_heard_of_are_polled_for(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    early = await shop.placed()
    async with relaying(settings, **NEVER_LOOKS, valkey_url="redis://127.0.0.1:1"):
        await topic.of(early["order_id"], 1)  # found, as new slices ring
        late = await shop.placed()
        await topic.of(late["order_id"], 1)  # and only a poll can bring this one
        await eventually(lambda: _empty(owner), "published rows are deleted")


async def test_a_hint_without_a_row_is_harmless(settings: RelaySettings, valkey_url: str) -> None:
    wake = Wake(valkey_url, "orders")
    wake.start()
    async with relaying(settings):
        await eventually(_slices(16), "all slices")
        polled = asyncio.create_task(_polled())
        await asyncio.sleep(0)  # it has counted
        wake()
        await polled
    await wake.close()


async def test_a_row_without_its_event_parks_its_order_and_no_other(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    parked = await shop.placed()
    key = ids.order_key(ids.from_text(parked["order_id"]))
    await owner.execute(
        "INSERT INTO orders.outbox (shard, slice, order_id, created_at, version) VALUES ($1, $2, $3, $4, 99)",
        *(key.shard, key.shard % 16, key.order_id, key.created_at),
    )
    assert (await shop.command(parked, "ship")).status_code == 200  # its row stands behind the one that cannot go
    other = await _delivered(shop)  # of the same buyer, so in the same slice, behind both
    assert ids.order_key(ids.from_text(other["order_id"])).shard == key.shard
    async with relaying(settings):
        await topic.of(other["order_id"], 3)
        await eventually(_parked_in_metrics(1), "it is seen from outside")
        assert (await shop.command(parked | {"version": 2}, "deliver")).status_code == 200
        last = await _delivered(shop)
        await topic.of(last["order_id"], 3)
        await eventually(lambda: _empty(owner), "what is parked is not read again and again")
        await topic.poll()
        assert topic.versions(parked["order_id"]) == [1]
        rows = await owner.fetch("SELECT version, reason FROM relay.parked ORDER BY position")
        assert [tuple(row) for row in rows] == [
            (99, "there is no such event"),
            (2, "waits for version 99"),
            (3, "waits for version 99"),
        ]


def _parked_in_metrics(aggregates: int) -> Callable[[], Awaitable[bool]]:
    async def counted() -> bool:
        return metric("outbox_parked_aggregates", outbox="orders") == aggregates

    return counted


async def test_what_is_parked_stays_so_over_a_restart_and_goes_out_in_order_once_released(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner, database_url: str
) -> None:
    order = await _delivered(shop)
    order_id = ids.from_text(order["order_id"])
    key = ids.order_key(order_id)
    # Before its own events, so that all of them wait.
    await owner.execute(
        "INSERT INTO orders.outbox (shard, slice, position, order_id, created_at, version) OVERRIDING SYSTEM VALUE"
        " VALUES ($1, $2, 0, $3, $4, 99)",
        *(key.shard, key.shard % 16, order_id, key.created_at),
    )
    before = await owner.fetch("TABLE orders.outbox ORDER BY position")
    assert [row["version"] for row in before] == [99, 1, 2, 3]
    async with relaying(settings):
        await eventually(lambda: _parked(owner, 4), "its rows are parked")
        await eventually(_parked_in_metrics(1), "it is seen from outside")
    async with relaying(settings):
        witness = await _delivered(shop)
        await topic.of(witness["order_id"], 3)
        await eventually(lambda: _empty(owner), "published rows are deleted")
        assert await _parked(owner, 4)
        assert topic.versions(order["order_id"]) == []
    async with connected(database_url) as database:
        assert await ORDERS.release(database, order_id) == [1, 2, 3, 99]
        assert await ORDERS.release(database, order_id) == []
    assert await owner.fetch("TABLE orders.outbox ORDER BY position") == before
    await owner.execute("DELETE FROM orders.outbox WHERE version = 99")
    async with relaying(settings):
        await topic.of(order["order_id"], 3)
        await eventually(lambda: _empty(owner), "published rows are deleted")
        await eventually(_parked_in_metrics(0), "it is seen from outside")
    await topic.poll()
    assert topic.versions(order["order_id"]) == [1, 2, 3]


async def _parked(owner: Owner, rows: int) -> bool:
    return bool(await owner.fetchval("SELECT count(*) = $1 FROM relay.parked", rows))


async def test_a_row_read_before_its_order_was_released_is_not_parked_behind_nothing(
    shop: Shop, owner: Owner, database_url: str
) -> None:
    order = await _delivered(shop)
    number = await owner.fetchval("SELECT slice FROM orders.outbox LIMIT 1")
    async with connected(database_url) as database:
        first, *_ = await database.rows(ORDERS.read, slices=[number], rows=10)
        assert first["parked_version"] is None
        assert len(await ORDERS.park(database, [(first, "poison")])) == 1
        behind = await database.rows(ORDERS.read, slices=[number], rows=10)
        assert [row["parked_version"] for row in behind] == [1, 1]
        assert await ORDERS.release(database, ids.from_text(order["order_id"])) == [1]
        assert await ORDERS.park(database, [(row, "waits") for row in behind]) == []
    assert await owner.fetchval("SELECT array_agg(version ORDER BY position) FROM orders.outbox") == [1, 2, 3]


# Events that do not compress: what a topic takes is judged by what is sent.
WRITE_LONG = """
WITH written AS (
    INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)
    SELECT $1, $2, $3, n, uuidv7(), 'order.test', jsonb_build_object('x', (
        SELECT string_agg(md5(format('%s %s', n, i)), '') FROM generate_series(1, $5 / 32) i)), 'process:test', now()
    FROM unnest($4::bigint[]) n
    RETURNING version
)
INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)
SELECT $3, $3 % 16, $1, $2, version FROM written ORDER BY version
"""


async def _topic_that_takes(kafka_url: str, bytes_max: int) -> str:
    name = f"test.{uuid.uuid4().hex}"
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    await admin.start()
    await admin.create_topics([NewTopic(name, 3, 1, topic_configs={"max.message.bytes": str(bytes_max)})])
    await admin.close()
    return name


async def test_an_event_that_the_topic_refuses_for_its_size_parks_its_order_and_no_other(
    shop: Shop, settings: RelaySettings, kafka_url: str, owner: Owner
) -> None:
    outbox = replace(ORDERS, topic=await _topic_that_takes(kafka_url, 20_000))
    parked = await shop.placed()
    key = ids.order_key(ids.from_text(parked["order_id"]))
    await owner.execute(WRITE_LONG, key.order_id, key.created_at, key.shard, [2], 100_000)
    await owner.execute(WRITE_LONG, key.order_id, key.created_at, key.shard, [3], 100)
    others = [await _delivered(shop) for _ in range(5)]  # of the same slice, behind it
    async with listening(kafka_url, outbox.topic) as topic, relaying(settings, outbox):
        for other in others:
            await topic.of(other["order_id"], 3)
        await eventually(lambda: _empty(owner), "what is parked is not tried again and again")
        failures = _failures()
        last = await _delivered(shop)
        await topic.of(last["order_id"], 3)
        await eventually(_parked_in_metrics(1), "it is seen from outside")
        await topic.poll()
    assert dict.fromkeys(topic.versions(parked["order_id"])) == {1: None}
    assert _failures() == failures
    rows = await owner.fetch("SELECT version, reason FROM relay.parked ORDER BY position")
    assert [tuple(row) for row in rows] == [(2, "the broker refuses it for its size"), (3, "waits for version 2")]


async def test_a_topic_that_takes_less_than_a_batch_gets_smaller_ones_and_every_event(
    shop: Shop, settings: RelaySettings, kafka_url: str, owner: Owner
) -> None:
    outbox = replace(ORDERS, topic=await _topic_that_takes(kafka_url, 20_000))
    order = await shop.placed()
    key = ids.order_key(ids.from_text(order["order_id"]))
    await owner.execute(WRITE_LONG, key.order_id, key.created_at, key.shard, list(range(2, 41)), 10_000)
    async with listening(kafka_url, outbox.topic) as topic, relaying(settings, outbox):

        async def last_has_come() -> bool:
            await topic.poll()
            return 40 in topic.versions(order["order_id"])

        await eventually(last_has_come, "the last event")
        await eventually(lambda: _empty(owner), "published rows are deleted")
    assert list(dict.fromkeys(topic.versions(order["order_id"]))) == list(range(1, 41))
    assert await owner.fetch("TABLE relay.parked") == []


@pytest.mark.parametrize("character", ["\N{TEAPOT}", "\x01", '"'], ids=["four bytes", "escaped in six", "quote"])
async def test_the_largest_legal_order_reaches_kafka(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner, character: str
) -> None:
    product = await shop.product(name=character * 200, price=10**12, stock=10**7)
    order = (await shop.place(*[(product, 4)] * 2_000)).json()
    assert order["item_count"] == 2_000, order
    async with relaying(settings):
        (record,) = await topic.of(order["order_id"], 1, seconds=30)
        await eventually(lambda: _empty(owner), "published rows are deleted")
    event = orjson.loads(record.value)
    assert len(event["data"]["change"]["items"]) == 2_000
    assert event == (await shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"][0]
    assert metric("outbox_parked_aggregates", outbox="orders") <= 1, "it was parked as too large"


async def test_an_idle_relay_asks_the_database_at_most_four_times_a_second(
    settings: RelaySettings, owner: Owner
) -> None:
    await owner.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")

    async def asked() -> int:
        calls: int = await owner.fetchval(
            "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements"
            " WHERE userid = 'outbox_relay'::regrole AND dbid = (SELECT oid FROM pg_database"
            " WHERE datname = current_database())"
        )
        return calls

    async with relaying(settings, *OUTBOXES):
        for outbox in OUTBOXES:
            await eventually(_slices(16, outbox.name), "all slices")
        await _looked(10)  # and it has grown slow
        before, started = await asked(), time.monotonic()
        assert before > 0
        await _looked(20)
        statements, seconds = await asked() - before, time.monotonic() - started
    assert seconds < statements <= 4 * seconds + 1, f"{statements} statements in {seconds:.2f} s"


async def _looked(times: int) -> None:
    """All outboxes have been looked at so many times more."""

    def looks() -> float:
        return metric("db_query_seconds_count", statement="outboxes_look")

    goal = looks() + times

    async def reached() -> bool:
        return looks() >= goal

    await eventually(reached, "a look", seconds=30)


def _slices(number: int, outbox: str = "orders") -> Callable[[], Awaitable[bool]]:
    async def has() -> bool:
        return metric("outbox_slices", outbox=outbox) == number

    return has


async def test_a_relay_that_ends_gives_its_slices_back(settings: RelaySettings, owner: Owner) -> None:
    async with relaying(settings, lease_seconds=600):  # so that it is not because a lease has run out
        await eventually(_slices(16), "all slices")
    assert await owner.fetch("TABLE relay.members") == []
    async with relaying(settings):
        await eventually(_slices(16), "all slices")


async def test_a_relay_that_loses_its_connections_goes_on(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner
) -> None:
    async with relaying(settings):
        await topic.of((await shop.placed())["order_id"], 1)
        ended = await owner.fetchval(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'outbox-relay' AND datname = current_database()"
        )
        assert ended >= 1
        await topic.of((await _delivered(shop))["order_id"], 3)


async def test_an_event_of_a_transaction_that_commits_late_is_not_skipped(
    shop: Shop, settings: RelaySettings, topic: Topic, owner: Owner, database_url: str
) -> None:
    late = await shop.placed()  # its row is taken back, and written by a transaction that lasts
    key = ids.order_key(ids.from_text(late["order_id"]))
    await owner.execute("DELETE FROM orders.outbox")
    slow = await asyncpg.connect(database_url)
    held = slow.transaction()
    await held.start()
    position = await slow.fetchval(
        "INSERT INTO orders.outbox (shard, slice, order_id, created_at, version) VALUES ($1, $2, $3, $4, 1)"
        " RETURNING position",
        *(key.shard, key.shard % 16, key.order_id, key.created_at),
    )
    async with relaying(settings, batch_rows_per_slice=2):
        for _ in range(5):
            order = await _delivered(shop)  # of the same buyer: the same slice, higher positions
            await topic.of(order["order_id"], 3)
        await eventually(lambda: _empty(owner), "all but the late one is published and gone")
        assert await owner.fetchval("SELECT last_value FROM orders.outbox_position_seq") == position + 15
        assert topic.versions(late["order_id"]) == []
        await held.commit()
        await topic.of(late["order_id"], 1)
        await eventually(lambda: _empty(owner), "the late one too")
    await slow.close()


@pytest.fixture
async def own_kafka(stack: Stack, tmp_path: Path) -> AsyncIterator[Stack]:
    """A Kafka that may be hurt."""
    async with kafka_beside(stack, tmp_path) as started:
        yield started
        started.send_signal("kafka", signal.SIGCONT)  # or it would not hear that it shall stop


def _probes() -> float:
    return sum(metric("breaker_probes_total", breaker="kafka", outcome=outcome) for outcome in ("success", "failure"))


def _failures() -> float:
    return metric("relay_failures_total", outbox="orders", part="kafka")


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_while_kafka_is_away_rows_wait_and_then_go_out_in_order(
    shop: Shop, settings: RelaySettings, own_kafka: Stack, owner: Owner, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # The time-outs that would make this test last a minute.
    monkeypatch.setattr(stream, "PUBLISH_TIMEOUT_SECONDS", PRODUCER_TIMEOUT_SECONDS)
    monkeypatch.setattr(stream, "REQUEST_TIMEOUT_MS", int(PRODUCER_TIMEOUT_SECONDS * 1000))
    kafka_url = own_kafka.addresses.kafka
    async with relaying(settings, *OUTBOXES, kafka_url=kafka_url), listening(kafka_url) as topic:
        early = await shop.placed()
        await topic.of(early["order_id"], 1)
        assert metric("breaker_state", breaker="kafka") == 0
        failures, probes, dead_at = _failures(), _probes(), time.monotonic()
        if how == "killed":
            await own_kafka.kill("kafka")
        else:
            own_kafka.send_signal("kafka", signal.SIGSTOP)
        early = (await shop.command(early, "ship")).json()
        product = await shop.product()
        orders = await asyncio.gather(*(_delivered(shop, product) for _ in range(5)))  # orders are taken

        async def waits() -> bool:
            return _failures() >= failures + 2 and metric("outbox_depth", outbox="orders") == 16

        await eventually(waits, "failures and depth in metrics", seconds=40)
        assert await owner.fetchval("SELECT count(*) FROM orders.outbox") == 16
        assert metric("breaker_state", breaker="kafka") > 0

        async def tried_thrice() -> bool:
            return _probes() >= probes + 3

        await eventually(tried_thrice, "it is tried whether Kafka is back", seconds=30)
        windows = (time.monotonic() - dead_at) / publisher.RESET_SECONDS
        assert _probes() - probes <= windows, "three outboxes, and one probe a window"

        async def told() -> bool:
            return not await owner.fetchval("SELECT count(*) FROM orders.invalidations")

        await eventually(told, "the cache is told all the same")
        if how == "frozen":
            own_kafka.send_signal("kafka", signal.SIGCONT)
        await own_kafka.ready("kafka")
        early = (await shop.command(early, "deliver")).json()
        await eventually(lambda: _empty(owner), "all is published", seconds=30)
        assert metric("breaker_state", breaker="kafka") == 0
        for order in (early, *orders):
            await topic.of(order["order_id"], 3, seconds=30)
    async with listening(kafka_url):
        gc.collect()
        senders = [task for task in asyncio.all_tasks() if "_sender_routine" in repr(task.get_coro())]
        assert not senders, "a producer that was given up still sends"
    for order in (early, *orders):
        versions = topic.versions(order["order_id"])
        assert list(dict.fromkeys(versions)) == [1, 2, 3], versions


async def test_a_publisher_that_fails_sends_nothing_afterwards(
    own_kafka: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PUBLISH_TIMEOUT_SECONDS", PRODUCER_TIMEOUT_SECONDS)
    kafka_url = own_kafka.addresses.kafka
    async with listening(kafka_url) as topic:
        messages = [
            stream.Message(b"one", bytes([number]) * 200_000, [("ce_sequence", b"%020d" % number)])
            for number in range(1, 9)
        ]  # of one partition: a batch is in flight, the others queue behind it
        kafka = publisher.breaker()
        async with Publisher(kafka_url, client_id="first", kafka=kafka) as first:
            await first.publish(ORDERS_TOPIC, [stream.Message(b"zero", b"", [("ce_sequence", b"0")])])
            own_kafka.send_signal("kafka", signal.SIGSTOP)
            with pytest.raises(stream.StreamError):
                await first.publish(ORDERS_TOPIC, messages)
            assert kafka.state == "open"
            with pytest.raises(publisher.LeftAloneError):
                await first.publish(ORDERS_TOPIC, messages)
        assert not [task for task in asyncio.all_tasks() if "_sender_routine" in repr(task.get_coro())]
        own_kafka.send_signal("kafka", signal.SIGCONT)
        async with Publisher(kafka_url, client_id="second") as second:
            await second.publish(ORDERS_TOPIC, messages)
        await topic.of("one", len(messages))
        await topic.poll()
        versions = topic.versions("one")
        assert list(dict.fromkeys(versions)) == list(range(1, 9))
        # At most the batch that was on its way is there twice; what queued behind it never left.
        assert len(versions) <= len(messages) + 2, versions


async def test_of_fifty_that_publish_to_a_frozen_broker_one_is_the_probe_and_those_that_leave_open_nothing(
    own_kafka: Stack,
) -> None:
    kafka, kafka_url = publisher.breaker(), own_kafka.addresses.kafka
    messages = [stream.Message(b"%d" % number, b"", [("ce_sequence", b"1")]) for number in range(200)]
    await stream.ensure_topic(kafka_url, ORDERS_TOPIC)
    async with Publisher(kafka_url, client_id="first", kafka=kafka) as first:
        await first.publish(ORDERS_TOPIC, messages)
        own_kafka.send_signal("kafka", signal.SIGSTOP)
        leaving = [asyncio.create_task(first.publish(ORDERS_TOPIC, [message])) for message in messages]
        await asyncio.wait(leaving, timeout=0.1)  # so that they wait for the broker
        for one in leaving:
            one.cancel()
        ends = await asyncio.gather(*leaving, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError] * len(leaving)
        assert kafka.state == "closed"
    kafka._deadline_seconds = 1.0
    with pytest.raises(stream.StreamError):
        async with Publisher(kafka_url, client_id="second", kafka=kafka):
            pytest.fail("a frozen broker answers")
    assert kafka.state == "open"

    async def connect() -> None:
        async with Publisher(kafka_url, client_id="one of fifty", kafka=kafka):
            pass

    async def window_over() -> bool:
        return not kafka.left_alone

    await eventually(window_over, "the window is over")
    probes = _probes()
    ends = await asyncio.gather(*(connect() for _ in range(50)), return_exceptions=True)
    assert _probes() == probes + 1
    assert sum(isinstance(end, publisher.LeftAloneError) for end in ends) == 49
    assert sum(isinstance(end, stream.StreamError) for end in ends) == 50
    own_kafka.send_signal("kafka", signal.SIGCONT)
    await own_kafka.ready("kafka")
    kafka._deadline_seconds = stream.PUBLISH_TIMEOUT_SECONDS
    await eventually(window_over, "the window is over")
    await connect()
    assert kafka.state == "closed"


async def test_behind_a_message_that_is_refused_for_its_size_nothing_of_its_key_is_sent(kafka_url: str) -> None:
    name = await _topic_that_takes(kafka_url, 20_000)
    large, small, last = (
        stream.Message(b"one", os.urandom(size), [("ce_sequence", b"%020d" % number)])
        for number, size in enumerate((300_000, 10, 10), start=1)
    )
    async with listening(kafka_url, name) as topic:
        kafka = publisher.breaker()
        # By a producer that is new to the broker, which would take its second batch without the first.
        async with Publisher(kafka_url, client_id="first", kafka=kafka) as first:
            with pytest.raises(TooLargeError) as refused:
                await first.publish(name, [large, small])
            assert refused.value.messages == [large]
            assert kafka.state == "closed", "a refusal is an answer"
        async with Publisher(kafka_url, client_id="second") as second:
            await second.publish(name, [last])
        await topic.of("one", 1)
        await topic.poll()
        assert topic.versions("one") == [3]
