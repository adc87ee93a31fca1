"""`orders migrate`: the schema, by Alembic."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import asyncpg
import typer
from alembic import command
from alembic.config import Config

from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
ROLES = (
    "orders_api",
    "orders_projector",
    "orders_maintenance",
    "orders_reports",
    "catalog_api",
    "customers_api",
    "payments_worker",
    "outbox_relay",
    "orders_inspect",
)


def migrate(revision: Annotated[str, typer.Argument(help="Where to go.")] = "head") -> None:
    """Bring the schema up to date, and give the processes' roles the password in ORDERS_ROLE_PASSWORD."""
    upgrade(Addresses.of(StackSettings()).postgres, revision, role_password=os.environ.get("ORDERS_ROLE_PASSWORD"))


def upgrade(url: str, revision: str = "head", *, role_password: str | None = None) -> None:
    """The schema is at `revision`. Safe to run from several places at once. Not to be called from a running loop."""
    command.upgrade(configuration(url), revision)
    if role_password:
        asyncio.run(_set_passwords(url, role_password))


def configuration(url: str) -> Config:
    """Alembic's configuration for the database at `url` (a role that may create roles and schemas)."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config


async def _set_passwords(url: str, password: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for role in ROLES:
            # ALTER ROLE takes no parameters, so PostgreSQL itself quotes them.
            statement = await connection.fetchval(
                "SELECT format('ALTER ROLE %I PASSWORD %L', $1::text, $2::text)", role, password
            )
            await connection.execute(statement)
    finally:
        await connection.close()
