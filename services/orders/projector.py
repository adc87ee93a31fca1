"""Process `orders-projector`: keeps in orders.products what orders need of the catalogue, from the catalogue's events.

The worked example of docs/consuming.md: settings, one database, one consumer, one function that applies a batch.
"""

import asyncio
import signal
from functools import partial

from services.common import log, metrics
from services.common.consumer import Consumer
from services.common.db import Database
from services.contracts.envelope import CATALOG_TOPIC
from services.orders import projections
from services.orders.settings import OrdersSettings

PROCESS = "orders-projector"
STOP_SECONDS = 6.0  # a little over what leaving the group is given


async def run(settings: OrdersSettings) -> None:
    """Consume until SIGTERM or SIGINT; the batch under way is finished."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # One connection, made when it is first wanted: the database may be away at the start.
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=1)
    await database.open()
    handle = partial(projections.copy_products, database)
    consumer = Consumer(settings.kafka_url, group=PROCESS, topics=[CATALOG_TOPIC], handle=handle)
    consuming = asyncio.create_task(consumer.run(), name="consume")
    stopped = asyncio.create_task(stop.wait(), name="stopped")
    # Consuming that ends has failed in a way nobody foresaw: end the process, so that it is seen and started again.
    await asyncio.wait([consuming, stopped], return_when=asyncio.FIRST_COMPLETED)
    while not consuming.done():
        consuming.cancel()  # told again, as aiokafka's closing may swallow a cancellation
        await asyncio.wait([consuming], timeout=STOP_SECONDS)
    stopped.cancel()
    await database.close()
    if not consuming.cancelled():
        consuming.result()


def main() -> None:
    """Run until SIGTERM."""
    settings = OrdersSettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    asyncio.run(run(settings))
