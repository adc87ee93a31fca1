"""Settings of payments-worker."""

from typing import Literal

from pydantic import Field, SecretStr

from services.common.settings import ClientSettings


class PaymentsSettings(ClientSettings):
    """What payments-worker may be told."""

    orders_url: str = Field(default="http://127.0.0.1:8000", description="where orders-api answers")
    payment_provider: Literal["sandbox", "stripe"] = Field(default="sandbox", description="who is asked")
    provider_url: str = Field(default="http://127.0.0.1:8005", description="where payments-sandbox answers")
    stripe_key: SecretStr = Field(default=SecretStr(""), description="secret key of the account at Stripe")
    stripe_url: str | None = Field(default=None, description="replaces the API of Stripe")
    callback_secret: SecretStr = Field(
        default=SecretStr(""), description="what callbacks are signed with; without one, none is taken"
    )
    pool_size: int = Field(default=8, ge=2, le=200, description="connections of one process to PostgreSQL")
    steps_at_once: int = Field(default=16, ge=1, le=1000, description="steps of as many orders under way at once")
    step_lease_seconds: float = Field(
        default=30.0, gt=0, description="how long a step is one worker's: over twice the provider's deadline"
    )
    step_poll_seconds: float = Field(default=0.5, gt=0, description="how often due steps are looked for at least")
    provider_deadline_seconds: float = Field(default=10.0, gt=0, description="how long the provider may take to answer")
    provider_reset_seconds: float = Field(
        default=10.0, gt=0, description="how long a provider that failed five times in a row is left alone"
    )
    retry_seconds_min: float = Field(default=0.5, gt=0, description="until a step is tried again, doubling each time")
    retry_seconds_max: float = Field(default=60.0, gt=0, description="the longest of these")
    upkeep_interval_seconds: float = Field(default=3600.0, gt=0, description="how often what is old is deleted")
    steps_kept_days: int = Field(default=30, ge=1, description="how long steps that are done are kept")
    inbox_kept_days: int = Field(
        default=30, ge=8, description="how long unchanged inbox rows are kept: longer than a topic keeps messages"
    )
