"""The schema, by Alembic."""

from pathlib import Path

from alembic import command
from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def upgrade(url: str, revision: str = "head") -> None:
    """The schema is at `revision`. Safe to run from several places at once. Not to be called from a running loop."""
    command.upgrade(configuration(url), revision)


def configuration(url: str) -> Config:
    """Alembic's configuration for the database at `url` (a role that may create roles and schemas)."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    return config
