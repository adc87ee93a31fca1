"""A consumer of orders as a process, to be killed: it writes down every version it applies, in the order it does.

Of some orders it does not understand version 2, so that there are dead letters: see `is_poison`.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path
from zlib import crc32

from services.common import log, metrics
from services.common.consumer import Consumer
from services.common.db import Database
from services.common.events_api import EventsApi
from services.common.handle import PoisonError
from services.common.inbox import Arrival, Inbox, arrival
from services.common.process import until_stopped
from services.common.service_token import ServiceToken
from services.common.settings import ClientSettings
from services.common.stream import Received
from services.contracts.envelope import ORDERS_SOURCE, ORDERS_TOPIC
from services.embedded.addresses import Addresses
from services.embedded.processes import Process
from services.embedded.settings import METRICS, StackSettings

NAME = "auditor"
SCHEMA = """
CREATE SCHEMA audit;
CREATE TABLE audit.applied (
    position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1), order_id TEXT, version BIGINT, event_id TEXT);
CREATE TABLE audit.inbox (LIKE orders.inbox INCLUDING ALL);
"""
_APPLY = (
    "INSERT INTO audit.applied (order_id, version, event_id) SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])"
)
_INBOX = Inbox("audit", NAME)


class Settings(ClientSettings):
    """What it is told."""

    orders_url: str


def is_poison(order_id: str, version: int) -> bool:
    """Version 2 of every eighth order or so: what is after it cannot be applied either."""
    return version == 2 and crc32(order_id.encode()) % 8 == 0


def process(settings: StackSettings) -> Process:
    """It, as a part of a stack."""
    return Process(
        NAME,
        argv=(sys.executable, str(Path(__file__).resolve())),
        metrics=METRICS + 15,
        client=True,
        env={"ORDERS_POSTGRES_URL": Addresses.of(settings).postgres},
    )


async def _run(settings: Settings) -> None:
    database = Database(settings.postgres_url, application_name=NAME, size_min=0, size_max=1)
    await database.open()

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        arrivals = [_understood(message) for message in messages]
        async with database.transaction() as connection:
            new = await _INBOX.judge_changes(connection, topic, messages)
            told = list(compress(zip(arrivals, messages, strict=True), new))
            await connection.execute(
                _APPLY,
                [one.key for one, _ in told],
                [one.version for one, _ in told],
                [message.headers["ce_id"].decode() for _, message in told],
            )
        return {"applied": len(told), "stale": len(messages) - len(told)}

    token = ServiceToken.of(settings, scope="orders:read orders:read:any")
    events_url = settings.orders_url + "/v1/orders/{key}/events"
    async with EventsApi("orders-api", events_url, token, source=ORDERS_SOURCE) as api:
        consumer = Consumer(settings.kafka_url, group=NAME, topics=[ORDERS_TOPIC], handle=handle, fill=api.fill)
        await until_stopped(consumer.run())


def _understood(message: Received) -> Arrival:
    arrived = arrival(message)
    if is_poison(arrived.key, arrived.version):
        raise PoisonError(message, "made up")
    return arrived


if __name__ == "__main__":
    told = Settings()
    log.configure(NAME)
    metrics.serve(NAME, told.host, told.metrics_port)
    asyncio.run(_run(told))
