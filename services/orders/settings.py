"""Settings of the orders processes."""

from datetime import timedelta

from pydantic import Field

from services.common.settings import ApiSettings


class OrdersSettings(ApiSettings):
    """What the orders processes may be told."""

    pool_size: int = Field(default=16, ge=1, le=200, description="connections of one process to PostgreSQL")
    pending_expires_after: timedelta = Field(
        default=timedelta(minutes=30), description="how long an order waits for payment"
    )
    months_ahead: int = Field(default=3, ge=1, le=24, description="partitions made ahead of the current month")
    maintenance_interval_seconds: float = Field(default=3600, gt=0, description="how often maintenance looks")
    expiry_interval_seconds: float = Field(
        default=5.0, gt=0, description="how often maintenance looks for orders that have waited long enough for payment"
    )
    summaries_interval_seconds: float = Field(
        default=30.0,
        gt=0,
        description="how often maintenance refreshes the order summaries, as long as that takes a tenth of it",
    )
    summaries_window: timedelta = Field(
        default=timedelta(hours=24),
        ge=timedelta(0),
        le=timedelta(days=31),
        description="how young orders are that the summaries show besides the open ones: so that a refresh takes 3 s."
        " Make it smaller when order_summaries_interval_seconds is above the interval",
    )
    replica_url: str = Field(
        default="", description="libpq URL of a streaming replica, its user orders_reports; empty: no reports"
    )
    reports_lag_max_seconds: float = Field(
        default=60.0, gt=0, description="a replica that is further behind than that gives no reports"
    )
    heartbeat_interval_seconds: float = Field(
        default=5.0, gt=0, description="how often maintenance tells the replica how far it has come"
    )
    keys_kept_days: int = Field(default=30, ge=1, description="how long idempotency keys are kept")
    inbox_kept_days: int = Field(
        default=30,
        ge=8,
        description="how long unchanged inbox rows are kept: longer than a topic keeps messages",
    )
