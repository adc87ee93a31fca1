"""Settings of customers-api."""

from pydantic import Field

from services.common.settings import ApiSettings


class CustomersSettings(ApiSettings):
    """What customers-api may be told."""

    orders_url: str = Field(
        default="http://127.0.0.1:8000",
        description="where customers reach orders-api: an export says that their orders are there",
    )
