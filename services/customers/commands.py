"""What changes a profile, or erases all there is. One function is one transaction: committed, or nothing is there."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from prometheus_client import Counter

from services.common import ids
from services.common.db import Database
from services.common.db_errors import retried
from services.common.errors import DomainError
from services.customers import personal
from services.customers.domain import Profile
from services.customers.repository import DELETE_ADDRESSES, ERASE_PROFILE, PUT_PROFILE, find_profile

profiles_written_total = Counter("profiles_written_total", "Profiles changed, or erased with all else", ["result"])


async def change_profile(
    database: Database, user_id: UUID, patch: Mapping[str, str | None], *, if_match: int, now: datetime
) -> Profile:
    """The profile of version `if_match` with these members replaced, or removed (None), at its next version.

    A read and one statement with its commit (READ COMMITTED). 412 `version_mismatch`: it is at another version, also
    because it was erased meanwhile, or was changed between a write whose answer was lost and its repetition here.
    503 `unavailable`.
    """
    sent: Profile | None = None

    async def once() -> Profile:
        nonlocal sent
        current = await find_profile(database, user_id)
        if sent is not None and current == sent:
            return current  # by the try whose answer was lost
        if current.version != if_match:
            raise _mismatch(current.version)
        person = replace(current.person, **patch)
        sent = Profile(user_id, if_match + 1, person, now)
        values = _told(user_id) | {"version": sent.version, "person": personal.sealed(person), "updated_at": now}
        if not await database.rows(PUT_PROFILE, **values):
            raise _mismatch((await find_profile(database, user_id)).version)
        return sent

    changed = await retried(once)
    profiles_written_total.labels("changed").inc()
    return changed


async def erase(database: Database, user_id: UUID, *, now: datetime) -> None:
    """Nothing of the customer is there but that they were: their id, and a version that no earlier write knows.

    One transaction: the profile, whose row it locks, then the addresses as they are by then. Again, it changes nothing.
    503 `unavailable`.
    """

    async def once() -> bool:
        async with database.transaction() as connection:
            erased = await ERASE_PROFILE.rows(connection, **_told(user_id), updated_at=now)
            await DELETE_ADDRESSES.rows(connection, user_id=user_id)
        return bool(erased)

    profiles_written_total.labels("erased" if await retried(once) else "unchanged").inc()


def _told(user_id: UUID) -> dict[str, Any]:
    shard = ids.shard_of(user_id)
    return {"user_id": user_id, "shard": shard, "slice": shard % ids.SLICES}


def _mismatch(version: int) -> DomainError:
    return DomainError(
        "version_mismatch",
        412,
        "The profile has changed, or was erased, since you saw it.",
        extra={"current_version": version},
    )
