"""Process `orders-projector`: carries out what events say.

Of the catalogue it keeps what orders need in orders.products; what payments say moves their orders; what orders have
sold it adds up in the rollups. Settings, one database, one consumer, one function a topic that applies a batch:
docs/consuming.md.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from services.common import caches, log, metrics, process
from services.common.after_commit import AfterCommit
from services.common.consumer import Consumer
from services.common.db import Database
from services.common.handle import Handle
from services.common.outbox import Wake
from services.common.process import until_stopped
from services.common.stream import Received
from services.contracts.envelope import CATALOG_TOPIC, ORDERS_TOPIC, PAYMENTS_TOPIC
from services.orders import projections, settlements
from services.orders.settings import OrdersSettings

PROCESS = "orders-projector"


async def run(settings: OrdersSettings) -> None:
    """Consume until SIGTERM or SIGINT; the batch under way is finished."""
    # One connection, made when it is first wanted: the database may be away at the start.
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=1)
    await database.open()
    wake = Wake(settings.valkey_url, "orders")
    wake.start()
    cache = caches.cache(settings.cache_at)
    handlers: dict[str, Handle] = {
        CATALOG_TOPIC: partial(projections.copy_products, database),
        PAYMENTS_TOPIC: partial(settlements.settle_orders, database, AfterCommit(wake, cache)),
        ORDERS_TOPIC: partial(projections.count_sales, database),
    }

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        return await handlers[topic](topic, messages)

    consumer = Consumer(
        settings.kafka_url,
        group=PROCESS,
        topics=list(handlers),
        handle=handle,
        stuck_after_seconds=settings.consumer_stuck_after_seconds,
    )
    try:
        await until_stopped(consumer.run())
    finally:
        if cache is not None:
            await cache.close()
        await wake.close()
        await database.close()


def main() -> None:
    """Run until SIGTERM."""
    settings = OrdersSettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    process.run(run(settings))
