"""Settings of outbox-relay."""

from pydantic import Field

from services.common.settings import ProcessSettings


class RelaySettings(ProcessSettings):
    """What outbox-relay may be told."""

    batch_rows_per_slice: int = Field(default=32, ge=1, le=1000, description="rows of a slice read at once")
    # Orders within it share a read, a produce request, a deletion and each consumer's fetch: docs/relay.md, "Gathered".
    gather_seconds: float = Field(default=0.02, ge=0, description="from one read to the next at least")
    poll_seconds_min: float = Field(default=0.005, gt=0, description="pause after rows that no writer was heard of")
    # What bounds how long a cache serves what its writer could not tell it; four questions a second, with the beats.
    poll_seconds_max: float = Field(default=0.25, gt=0, description="pause when there has been nothing for a while")
    # A dead relay's slices wait for its lease and then for another's beat: four seconds.
    lease_seconds: float = Field(
        default=3.0, gt=0, description="how long a relay that is not heard of keeps its slices"
    )
    beat_seconds: float = Field(default=1.0, gt=0, description="how often leases are renewed, and shared out anew")
