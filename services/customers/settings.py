"""Settings of customers-api."""

from pydantic import Field

from services.common.settings import ProcessSettings


class CustomersSettings(ProcessSettings):
    """What customers-api may be told."""

    pool_size: int = Field(default=8, ge=1, le=200, description="connections of one process to PostgreSQL")
    orders_url: str = Field(
        default="http://127.0.0.1:8000",
        description="where customers reach orders-api: an export says that their orders are there",
    )
