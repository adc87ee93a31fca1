"""Settings of catalog-api."""

from pydantic import Field

from services.common.settings import ProcessSettings


class CatalogSettings(ProcessSettings):
    """What catalog-api may be told."""

    pool_size: int = Field(default=8, ge=1, le=200, description="connections of one process to PostgreSQL")
