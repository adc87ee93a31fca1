"""Settings of realtime-gateway."""

from pydantic import Field

from services.common.settings import ProcessSettings


class RealtimeSettings(ProcessSettings):
    """What realtime-gateway may be told."""

    metrics_urls: str = Field(
        default="",
        pattern=r"^(https?://[^\s,]+(,https?://[^\s,]+)*)?$",
        description="where the metrics of other processes are, separated by commas: /v1/status tells of them",
    )
    orders_url: str = Field(default="http://127.0.0.1:8000", description="where orders-api answers")
    sockets_max: int = Field(default=10_000, ge=1, description="WebSockets of one process; further ones get 503")
    orders_max: int = Field(default=1_000, ge=1, description="orders that one WebSocket follows one by one")
    own_orders_max: int = Field(
        default=10_000, ge=1_000, description="of all of one's own, orders whose version is remembered"
    )
    queue_messages: int = Field(default=1_000, ge=2, description="what waits for a slow reader before it is closed")
    queue_bytes: int = Field(default=8 * 1024 * 1024, ge=1024, description="the same in bytes, or one message")
    ping_seconds: float = Field(default=20.0, gt=0, description="how often an idle WebSocket is pinged")
    stalled_seconds: float = Field(default=30.0, gt=0, description="how long a client may take nothing at all")
