"""Settings of outbox-relay."""

from pydantic import Field

from services.common.settings import ProcessSettings


class RelaySettings(ProcessSettings):
    """What outbox-relay may be told."""

    batch_rows_per_slice: int = Field(default=32, ge=1, le=1000, description="rows of a slice read at once")
    poll_seconds_min: float = Field(default=0.005, gt=0, description="pause after the last row")
    poll_seconds_max: float = Field(default=0.25, gt=0, description="pause when there has been nothing for a while")
    claim_seconds: float = Field(default=2.0, gt=0, description="how often slices of other relays are tried")
