"""The relay against the limit, and over a long backlog: `python -m loadtests.bench.relay [--rows 1000000]`.

Embedded servers with every durability setting on; the relay is the process as it is deployed, seen by its metrics.
First it and a bare aiokafka loop publish the same bytes, alternately (A B B A). Then it drains a backlog, of which each
tenth is told by itself. With `--minutes` it is kept busy for so long, while the size of the outbox is written down.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from services.cli import migrate
from services.common.outbox import channel
from services.common.publisher import BATCH_BYTES_MAX
from services.common.stream import MESSAGE_BYTES_MAX, Message, ensure_topic
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

BARE_TOPIC = "bare.events.v1"
BATCH = 512  # messages of the bare loop's batches: as many as the relay's, of 16 slices with 32 rows each
TENTHS = 10
PROCESSES_TOLD = {"relay": "outbox-relay", "postgres": "postgres", "kafka": "kafka"}
TOP_UP = 4_000  # rows written at once to keep the relay busy
BUSY_DEPTH = 8_000  # rows that wait at least, meanwhile

# Orders of three lines, about as long as real ones: 900 bytes on Kafka.
WRITE = """
WITH made AS MATERIALIZED (SELECT uuidv7() AS order_id, n FROM generate_series(1, $1) n),
keyed AS MATERIALIZED (
    SELECT order_id, uuid_extract_timestamp(order_id) AS created_at,
           (((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7))::smallint AS shard
    FROM made
), events AS (
    INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)
    SELECT order_id, created_at, shard, 1, uuidv7(), 'order.placed', jsonb_build_object(
        'change', jsonb_build_object('currency', 'USD', 'items', (
            SELECT jsonb_agg(jsonb_build_object('line_no', line, 'product_id', upper(md5(order_id::text || line)),
                'name', 'Thing of some length', 'quantity', line, 'unit_price', 1999, 'line_total', 1999 * line))
            FROM generate_series(1, 3) line)),
        'after', jsonb_build_object('status', 'confirmed', 'payment_status', 'on_account', 'currency', 'USD',
            'total_amount', 11994, 'user_id', order_id)), 'user:' || order_id, created_at
    FROM keyed
)
INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)
SELECT shard, shard % 16, order_id, created_at, 1 FROM keyed
"""


class Relay:
    """The process, as seen from outside."""

    def __init__(self, stack: Stack, connection: "asyncpg.Connection[asyncpg.Record]", client: httpx.AsyncClient):
        self.stack, self.connection, self._client = stack, connection, client
        self._valkey = Redis.from_url(stack.addresses.valkey)

    async def samples(self) -> dict[str, float]:
        """Its metrics that are told here, as they are now."""
        metrics: Any = self.stack.endpoints["metrics"]
        text = (await self._client.get(metrics["outbox-relay"])).raise_for_status().text
        found = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                label = sample.labels.get("outbox") or sample.labels.get("statement")
                if label in {"orders", "orders_outbox_read", "orders_outbox_delete"} and "le" not in sample.labels:
                    found[f"{sample.name} {label}"] = sample.value
        return found

    async def published(self) -> float:
        """Events so far."""
        return (await self.samples()).get("outbox_published_total orders", 0.0)

    async def write(self, rows: int) -> None:
        """So many events are there at once, and the relay has been called."""
        await self.connection.execute(WRITE, rows)
        await self._valkey.publish(channel("orders"), b"1")

    async def drained(self) -> float:
        """Seconds in which it publishes what there is."""
        started = time.perf_counter()
        while await self.connection.fetchval("SELECT EXISTS (SELECT FROM orders.outbox)"):  # its metrics cost it time
            await asyncio.sleep(0.02)
        return time.perf_counter() - started


def producer(kafka_url: str) -> Any:
    """As the relay has it."""
    return AIOKafkaProducer(
        bootstrap_servers=kafka_url,
        acks="all",
        enable_idempotence=True,
        compression_type="lz4",
        linger_ms=0,
        max_batch_size=BATCH_BYTES_MAX,
        max_request_size=MESSAGE_BYTES_MAX,
    )


async def last_messages(kafka_url: str, count: int) -> list[Message]:
    """So many messages of the topic, from its beginning."""
    consumer = AIOKafkaConsumer(
        ORDERS_TOPIC, bootstrap_servers=kafka_url, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    found: list[Message] = []
    try:
        while len(found) < count:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [Message(record.key, record.value, record.headers) for record in records]
    finally:
        await consumer.stop()
    return found[:count]


async def bare(kafka_url: str, messages: list[Message]) -> float:
    """Seconds of the loop: send a batch, wait for its acknowledgements."""
    sender = producer(kafka_url)
    await sender.start()
    try:
        started = time.perf_counter()
        for first in range(0, len(messages), BATCH):
            batch = messages[first : first + BATCH]
            sent = [await sender.send(BARE_TOPIC, value=m.value, key=m.key, headers=list(m.headers)) for m in batch]
            await asyncio.gather(*sent)
        return time.perf_counter() - started
    finally:
        await sender.stop()


def cpu_seconds(processes: dict[str, psutil.Process]) -> dict[str, float]:
    """What each has used so far; PostgreSQL with its backends."""
    found = {}
    for name, process in processes.items():
        family = [process, *(process.children() if name == "postgres" else ())]
        times = [one.cpu_times() for one in family]
        found[name] = sum(one.user + one.system for one in times)
    return found


async def compare(relay: Relay, rounds: int, rows: int) -> None:
    """Relay and bare loop, A B B A."""
    kafka_url = relay.stack.addresses.kafka
    await ensure_topic(kafka_url, BARE_TOPIC)
    await relay.write(rows)
    await relay.drained()  # warm
    messages = await last_messages(kafka_url, rows)
    await bare(kafka_url, messages[: rows // 4])
    size = sum(len(message.value) for message in messages) // rows
    processes = {name: psutil.Process(relay.stack.pid(pid)) for name, pid in PROCESSES_TOLD.items()}
    processes["bare"] = psutil.Process()
    ratios = []
    for number in range(rounds):
        found: dict[str, list[dict[str, float]]] = {"relay": [], "bare": []}
        for who in ("relay", "bare", "bare", "relay"):
            if who == "relay":
                await relay.write(rows)
            before = cpu_seconds(processes)
            seconds = await relay.drained() if who == "relay" else await bare(kafka_url, messages)
            after = cpu_seconds(processes)
            used = {name: (after[name] - before[name]) / rows * 1e6 for name in processes}
            found[who].append({**used, "rate": rows / seconds})
        means = {who: {n: statistics.mean(one[n] for one in two) for n in two[0]} for who, two in found.items()}
        ratios.append(means["relay"]["rate"] / means["bare"]["rate"])
        ours, theirs = means["relay"], means["bare"]
        say(
            f"round {number + 1}: ratio {ratios[-1]:.2f}; relay {ours['rate']:,.0f}/s, CPU of an event: relay"
            f" {ours['relay']:.0f} us, PostgreSQL {ours['postgres']:.0f}, Kafka {ours['kafka']:.0f};"
            f" bare {theirs['rate']:,.0f}/s, loop {theirs['bare']:.0f} us, Kafka {theirs['kafka']:.0f}"
        )
    spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
    say(
        f"relay to bare loop: median {statistics.median(ratios):.2f} ({spread}), {rows:,} events of {size} bytes,"
        f" {rounds} rounds A B B A"
    )


async def drain(relay: Relay, rows: int) -> None:
    """A backlog from its beginning to its end."""
    say(f"writing {rows:,} events")
    chunk = 50_000
    async with relay.connection.transaction():  # nothing is seen before all is there
        for _ in range(rows // chunk):
            await relay.connection.execute(WRITE, chunk)
        if rows % chunk:
            await relay.connection.execute(WRITE, rows % chunk)
    before, started = await relay.samples(), time.perf_counter()
    begin = before["outbox_published_total orders"]
    say("tenth      events/s   read ms   delete ms   batch ms   rows a batch")
    for tenth in range(1, TENTHS + 1):
        goal = begin + rows * tenth // TENTHS
        while (now := await relay.samples())["outbox_published_total orders"] < goal:
            await asyncio.sleep(0.05)
        seconds, done = time.perf_counter() - started, {name: now[name] - before.get(name, 0.0) for name in now}
        read, delete = (
            done[f"db_query_seconds_sum orders_outbox_{what}"] / done[f"db_query_seconds_count orders_outbox_{what}"]
            for what in ("read", "delete")
        )
        batches, events = done["db_query_seconds_count orders_outbox_delete"], done["outbox_published_total orders"]
        say(
            f"{tenth:5}   {events / seconds:11,.0f} {read * 1000:9.1f} {delete * 1000:11.1f}"
            f" {seconds / batches * 1000:10.1f} {events / batches:14.0f}"
        )
        before, started = now, time.perf_counter()


async def stay(relay: Relay, minutes: float, plot: Path | None) -> None:
    """Kept busy for so long: what the outbox is in the end is what it was in the beginning."""
    started, ending = time.monotonic(), asyncio.Event()

    async def keep_busy() -> None:
        written = done = await relay.published()
        while not ending.is_set():
            while written - done < BUSY_DEPTH:
                await relay.write(TOP_UP)
                written += TOP_UP
            await asyncio.sleep(0.05)
            done = await relay.published()

    writing = asyncio.create_task(keep_busy())
    looking = await asyncpg.connect(relay.stack.addresses.postgres)
    found: list[dict[str, float]] = []
    try:
        while (elapsed := time.monotonic() - started) < minutes * 60:
            (row,) = await looking.fetch(
                "SELECT n_dead_tup AS dead, pg_table_size('orders.outbox') / 1048576.0 AS table_mib,"
                " pg_relation_size('orders.pk_outbox') / 1048576.0 AS index_mib"
                " FROM pg_stat_user_tables WHERE relid = 'orders.outbox'::regclass"
            )
            published = await relay.published()
            found.append({"seconds": elapsed, "published": published, **{k: float(v) for k, v in row.items()}})
            await asyncio.sleep(max(1.0, minutes * 60 / 300))
    finally:
        ending.set()
        await writing
        await looking.close()
    third = len(found) // 3
    for name, part in (("first", found[:third]), ("last", found[-third:])):
        rate = (part[-1]["published"] - part[0]["published"]) / (part[-1]["seconds"] - part[0]["seconds"])
        worst = {key: max(one[key] for one in part) for key in ("dead", "table_mib", "index_mib")}
        say(
            f"{name} third of {minutes:g} minutes: {rate:,.0f} events/s; at most {worst['dead']:,.0f} dead rows,"
            f" table {worst['table_mib']:.1f} MiB, index {worst['index_mib']:.1f} MiB"
        )
    if plot is not None:
        draw(found, plot)


def draw(found: list[dict[str, float]], path: Path) -> None:
    """The run as an SVG."""
    import pygal  # noqa: PLC0415 # for who wants the plot only

    chart = pygal.XY(
        title="orders.outbox while the relay is kept busy",
        x_title="seconds",
        height=420,
        stroke_style={"width": 1.5},
        show_dots=False,
        js=(),
        legend_at_bottom=True,
        range=(0, None),
    )
    rates = [
        (b["seconds"], (b["published"] - a["published"]) / (b["seconds"] - a["seconds"]))
        for a, b in zip(found, found[10:], strict=False)
    ]
    points = [(round(x), round(y / 1000, 2)) for x, y in rates]
    chart.add("events a second, thousands", points)
    chart.add("dead rows, thousands", [(round(one["seconds"]), round(one["dead"] / 1000, 2)) for one in found])
    chart.add("table, MiB", [(round(one["seconds"]), round(one["table_mib"], 2)) for one in found])
    chart.add("index, MiB", [(round(one["seconds"]), round(one["index_mib"], 2)) for one in found])
    chart.render_to_file(str(path))


@asynccontextmanager
async def started() -> AsyncIterator[Relay]:
    """A stack with nothing but servers and the relay."""

    async def prepare(stack: Stack) -> None:
        await asyncio.to_thread(migrate.upgrade, stack.addresses.postgres, role_password=stack.addresses.role_password)
        connection = await asyncpg.connect(stack.addresses.postgres)
        await connection.execute("SELECT orders.create_month(now()::date)")
        await connection.close()

    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base())
        relays = tuple(process for process in PROCESSES if process.name == "outbox-relay")
        async with Stack(settings, processes=relays, prepare=prepare) as stack, httpx.AsyncClient() as client:
            connection = await asyncpg.connect(stack.addresses.postgres)
            relay = Relay(stack, connection, client)
            await relay.write(1)
            await relay.drained()
            yield relay
            await connection.close()


async def main(arguments: argparse.Namespace) -> None:
    """Run and print."""
    say(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg()}))
    async with started() as relay:
        if arguments.rounds:
            await compare(relay, arguments.rounds, arguments.round_rows)
        if arguments.rows:
            await drain(relay, arguments.rows)
        if arguments.minutes:
            await stay(relay, arguments.minutes, arguments.plot)


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000, help="backlog to drain, 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="of the comparison, 0 for none")
    parser.add_argument("--round-rows", type=int, default=20_000)
    parser.add_argument("--minutes", type=float, default=0, help="to be kept busy, 0 for none")
    parser.add_argument("--plot", type=Path, help="SVG of that run (needs pygal)")
    asyncio.run(main(parser.parse_args()))
