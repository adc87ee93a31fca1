"""`orders republish`: events of the log, published again as the relay published them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Final
from uuid import UUID

import orjson
import typer

from services.cli.target import FAILED, Source, bar, console, failures_told, owner_url, source, told_as_of
from services.common import clock, ids, log
from services.common.db import Row, WriteConnection
from services.common.publisher import Publisher
from services.common.snapshots import Snapshots, unhurried, unhurried_database
from services.common.stream import Message, StreamError, UnpublishableError, ensure_topic
from services.contracts.envelope import COMPACTED_TOPICS, ORDERS_TOPIC
from services.contracts.orders import EventType
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings
from services.orders.histories import Progress, as_of, months_of, silent
from services.relay.outboxes import ORDERS, observing

OWN_TOPIC: Final = f"{ORDERS_TOPIC}.republished"  # nobody's until somebody is told to read it
LOOKED_ORDERS: Final = 5_000  # in one snapshot, for PAGE_ORDERS that have something to publish
PAGE_ORDERS: Final = 500
FETCH_ROWS: Final = 100
BATCH_MESSAGES: Final = 500
BATCH_BYTES: Final = 8 * 1024 * 1024  # what is held in memory, but for FETCH_ROWS rows
_NO_ID: Final = UUID(int=0)
_LAST_ID: Final = UUID(int=2**128 - 1)

# The last of the next orders of a month, whatever they are: so far one snapshot looks. Primary key; one partition.
_UPTO: Final = """
SELECT order_id FROM orders.order_events
WHERE created_at >= $1 AND created_at < $2 AND order_id > $3 AND version = 1
ORDER BY order_id LIMIT 1 OFFSET $4
"""
# Those of them that have an event in the time, in the order of order_id. Primary key; one partition.
_PAGE: Final = """
SELECT DISTINCT order_id FROM orders.order_events
WHERE created_at >= $1 AND created_at < $2 AND order_id > $3 AND order_id <= $4
  AND occurred_at >= $5 AND occurred_at < $6 AND ($7::text[] IS NULL OR type = ANY($7))
ORDER BY order_id LIMIT $8
"""
# Of each, what lies between its first and its last event in the time: clocks of two hosts may differ, and a version
# left out between two others would be a gap. Primary key; one partition.
_EVENTS: Final = """
SELECT order_id AS aggregate_id, version, event_id, type, data::text AS data, actor, traceparent, occurred_at
FROM (
    SELECT *, min(version) FILTER (WHERE occurred_at >= $4) OVER of_order AS first_version,
           max(version) FILTER (WHERE occurred_at < $5) OVER of_order AS last_version
    FROM orders.order_events
    WHERE created_at >= $1 AND created_at < $2 AND order_id = ANY($3)
    WINDOW of_order AS (PARTITION BY order_id)
) e
WHERE version BETWEEN first_version AND last_version AND ($6::text[] IS NULL OR type = ANY($6))
  AND (order_id, version) > ($7, $8)
ORDER BY order_id, version
"""


def instant(text: str) -> datetime:
    """A time of RFC 3339, in UTC. BadParameter when it has no offset: nobody knows then which instant is meant."""
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise typer.BadParameter(f"{text!r} is no date and time with an offset, such as 2026-11-22T18:16:50Z")


@dataclass(slots=True)
class Republished:
    """What Kafka has acknowledged, and which orders were left, wholly or from some event on, and why."""

    topic: str
    events: int = 0
    orders: int = 0
    seconds: float = 0.0
    as_of: datetime | None = None  # when it was read on a replica
    left: list[str] = field(default_factory=list)

    @property
    def told(self) -> str:
        """In a line."""
        rate = self.events / self.seconds if self.seconds else 0.0
        return f"{self.events:,} events of {self.orders:,} orders are on {self.topic} ({rate:,.0f} events/s)"


def republish(
    from_at: Annotated[
        datetime, typer.Option("--from", parser=instant, metavar="TIME", help="Events that occurred at it or later.")
    ],
    to_at: Annotated[
        datetime | None,
        typer.Option("--to", parser=instant, metavar="TIME", help="And before it; now, when not given."),
    ] = None,
    types: Annotated[list[EventType] | None, typer.Option("--type", help="Only of this type; may be repeated.")] = None,
    topic: Annotated[str, typer.Option(help="Where to; it is made when there is none.")] = OWN_TOPIC,
    primary: Annotated[bool, typer.Option("--primary", help="Read the primary although there is a replica.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Publish events of orders again, from the log: the same messages, each order's in the order of its versions.

    Reads the replica where there is one, else the primary in small snapshots. Safe while orders are taken, and safe to
    run twice: the second time brings the same messages, which a consumer with an inbox drops. Exit code 0: all are on
    the topic. 1: some order was left, it says which and why. 2: it ended early; it says what Kafka has acknowledged:
    run it again.
    """
    to_at = to_at or clock.now()
    if to_at <= from_at:
        raise typer.BadParameter("--to is not after --from")
    if topic in COMPACTED_TOPICS:
        raise typer.BadParameter(f"{topic} is not a topic of orders")
    log.configure("orders-republish", "WARNING")
    url, read, kafka_url = owner_url(), source(primary=primary, fast=False), Addresses.of(StackSettings()).kafka
    result = Republished(topic)
    try:
        with failures_told(), bar("republish") as progress:
            try:
                asyncio.run(
                    run(url, kafka_url, result, within=(from_at, to_at), read=read, types=types, progress=progress)
                )
            except StreamError as error:
                raise StreamError(f"Kafka at {kafka_url}: {error}") from error
    except (typer.Exit, KeyboardInterrupt) as ended:
        console.print(f"It ended early: {result.told}. Run it again.", highlight=False, soft_wrap=True)
        raise typer.Exit(FAILED) from ended
    if as_json:
        typer.echo(orjson.dumps(asdict(result), option=orjson.OPT_UTC_Z))
    else:
        typer.echo(result.told)
        typer.echo(told_as_of(result.as_of))
        for left in result.left:
            typer.echo(f"left: {left}")
    raise typer.Exit(1 if result.left else 0)


async def run(
    owner_url: str,
    kafka_url: str,
    result: Republished,
    *,
    within: tuple[datetime, datetime],
    read: Source | None = None,
    types: Sequence[str] | None = None,
    progress: Progress = silent,
) -> None:
    """The events that occurred `within` the half-open time are on `result.topic`, and `result` says how many.

    An order of any month may have some. Events are read where `read` says, which may be the replica, in snapshots that
    last a batch and none while Kafka is waited for; what commits after that is the relay's to bring. Whatever is
    raised, `result` has what was acknowledged. StreamError when Kafka fails, RuntimeError when the topic is the relay's
    and it has yet to bring older events: newer ones before them would be gaps.
    """
    started = time.perf_counter()
    read = read or Source(owner_url, 1.0)
    await ensure_topic(kafka_url, result.topic)
    async with (
        unhurried_database(read.url, "orders republish") as database,
        Publisher(kafka_url, client_id="orders-republish") as publisher,
    ):
        if result.topic == ORDERS_TOPIC:
            async with unhurried(owner_url, "orders republish") as connection:
                await _refuse_to_overtake(connection, within[0])
        snapshots = Snapshots(database, share=read.share)
        months, result.as_of = await snapshots.read(months_of), await snapshots.read(as_of)
        for number, month in enumerate(months):
            last = b""
            async with aclosing(_batches(snapshots, month, within, types, result)) as batches:
                async for batch in batches:
                    await publisher.publish(result.topic, batch)
                    for message in batch:
                        result.orders += message.key != last
                        last = message.key
                    result.events += len(batch)
                    result.seconds = time.perf_counter() - started
                    progress(f"{month:%Y-%m}, {result.told}", number, len(months))


async def _refuse_to_overtake(connection: WriteConnection, from_at: datetime) -> None:
    (row,) = await observing([ORDERS]).rows(connection)
    if row["parked"]:
        raise RuntimeError(
            f"outbox-relay has parked events of {row['parked']} orders: release them first;"
            " `orders outbox --parked` lists them"
        )
    if row["oldest_at"] is not None and row["oldest_at"] < from_at:
        raise RuntimeError(
            f"outbox-relay has yet to publish events from {clock.to_text(row['oldest_at'])} on to {ORDERS_TOPIC}:"
            " wait for it, or begin --from there"
        )


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a month has been read: all orders up to `after`, and of the next one's events those up to `begun`."""

    after: UUID = _NO_ID
    begun: tuple[UUID, int] = (_NO_ID, 0)


async def _batches(
    snapshots: Snapshots,
    month: datetime,
    within: tuple[datetime, datetime],
    types: Sequence[str] | None,
    result: Republished,
) -> AsyncGenerator[list[Message]]:
    """Of a month's orders, one after the other, each in the order of its versions: a snapshot a batch."""
    bounds = (month, clock.add_months(month, 1))
    place: _Place | None = _Place()
    left: UUID | None = None
    while place is not None:
        rows, place = await snapshots.read(partial(_read, bounds, within, types, place))
        batch = []
        for row in rows:
            if row["aggregate_id"] == left:
                continue  # nothing overtakes what cannot go, as in the relay
            try:
                batch.append(ORDERS.message(row))
            except UnpublishableError as error:
                left = row["aggregate_id"]
                result.left.append(f"{ids.to_text(left)} from version {row['version']} on: {error}")
        if batch:
            yield batch


async def _read(
    bounds: tuple[datetime, datetime],
    within: tuple[datetime, datetime],
    types: Sequence[str] | None,
    place: _Place,
    connection: WriteConnection,
) -> tuple[list[Row], _Place | None]:
    """The next events, as many as may be held in memory, and where to go on; None at the month's end."""
    upto = await connection.fetchval(_UPTO, *bounds, place.after, LOOKED_ORDERS)
    found = await connection.fetch(_PAGE, *bounds, place.after, upto or _LAST_ID, *within, types, PAGE_ORDERS)
    page = [row["order_id"] for row in found]
    rows: list[Row] = []
    size = 0
    async for row in connection.cursor(_EVENTS, *bounds, page, *within, types, *place.begun, prefetch=FETCH_ROWS):
        rows.append(row)
        size += len(row["data"])
        if len(rows) == BATCH_MESSAGES or size >= BATCH_BYTES:
            order_id = row["aggregate_id"]
            before = page.index(order_id)
            return rows, _Place(page[before - 1] if before else place.after, (order_id, row["version"]))
    if len(page) == PAGE_ORDERS:
        return rows, _Place(page[-1])
    return rows, _Place(upto) if upto else None
