"""Process `orders-projector`: keeps in orders.products what orders need of the catalogue, from the catalogue's events.

Settings, one database, one consumer, one function that applies a batch: docs/consuming.md.
"""

import asyncio
from functools import partial

from services.common import log, metrics
from services.common.consumer import Consumer
from services.common.db import Database
from services.common.process import until_stopped
from services.contracts.envelope import CATALOG_TOPIC
from services.orders import projections
from services.orders.settings import OrdersSettings

PROCESS = "orders-projector"


async def run(settings: OrdersSettings) -> None:
    """Consume until SIGTERM or SIGINT; the batch under way is finished."""
    # One connection, made when it is first wanted: the database may be away at the start.
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=1)
    await database.open()
    consumer = Consumer(
        settings.kafka_url,
        group=PROCESS,
        topics=[CATALOG_TOPIC],
        handle=partial(projections.copy_products, database),
        stuck_after_seconds=settings.consumer_stuck_after_seconds,
    )
    try:
        await until_stopped(consumer.run())
    finally:
        await database.close()


def main() -> None:
    """Run until SIGTERM."""
    settings = OrdersSettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    asyncio.run(run(settings))
