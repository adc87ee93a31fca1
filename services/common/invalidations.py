"""Rows of `invalidations`: what a write has replaced, told in its own transaction. The relay repeats it until it is so.

A row's keys are `{prefix: {id: version}}`, the id as a UUID: PostgreSQL writes them, and knows no ULIDs.
"""

from uuid import UUID

import orjson

from services.common import ids
from services.common.cached import Key
from services.contracts.cache import KINDS, TTL_MS_MAX, Kind


def keys_of(keys: str) -> dict[Key, int]:
    """What is to be invalidated, and the version that replaced it; of a newer release's kinds, too."""
    return {
        Key(KINDS.get(prefix) or Kind(prefix, prefix, TTL_MS_MAX), ids.to_text(UUID(thing))): version
        for prefix, versions in orjson.loads(keys).items()
        for thing, version in versions.items()
    }
