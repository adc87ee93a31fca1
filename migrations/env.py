"""Alembic's environment: one connection, one advisory lock, short lock waits, partitions out of sight."""

import asyncio
from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from services.catalog import tables as catalog
from services.customers import tables as customers
from services.orders import tables as orders
from services.payments import tables as payments
from services.relay import tables as relay

MIGRATION_LOCK = 0x6F7264657273  # "orders": two migrations at once wait for each other
SCHEMAS = {"orders", "catalog", "customers", "payments", "relay"}


def include_name(name: str | None, kind: str, _parents: Any) -> bool:
    return kind != "schema" or name in SCHEMAS


def run(connection: sa.Connection) -> None:
    partitions = {
        (row.schema, row.name)
        for row in connection.execute(
            sa.text(
                "SELECT n.nspname AS schema, c.relname AS name"
                " FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relispartition"
            )
        )
    }
    connection.commit()

    def include_object(item: Any, name: str | None, kind: str, reflected: bool, _compare_to: Any) -> bool:
        return not (kind == "table" and reflected and (item.schema, name) in partitions)

    context.configure(
        connection=connection,
        target_metadata=[orders.metadata, catalog.metadata, customers.metadata, payments.metadata, relay.metadata],
        include_schemas=True,
        include_name=include_name,
        include_object=include_object,
        compare_server_default=True,
        transaction_per_migration=True,
        version_table_schema="public",
    )
    connection.execute(sa.text("SELECT pg_advisory_lock(:lock)"), {"lock": MIGRATION_LOCK})
    connection.commit()
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.execute(sa.text("SELECT pg_advisory_unlock(:lock)"), {"lock": MIGRATION_LOCK})
        connection.commit()


async def run_online() -> None:
    url = sa.make_url(context.config.get_main_option("sqlalchemy.url") or "").set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool, connect_args={"server_settings": {"lock_timeout": "5s"}})
    try:
        async with engine.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


asyncio.run(run_online())
