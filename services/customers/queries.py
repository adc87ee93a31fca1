"""What customers may read of themselves. Every statement names whose it is."""

from functools import partial
from uuid import UUID

from services.common.db import Database
from services.common.db_errors import retried
from services.common.errors import not_found
from services.customers.domain import Address, Export, Profile, unwritten
from services.customers.repository import (
    EXPORT,
    GET_ADDRESS,
    GET_PROFILE,
    LIST_ADDRESSES,
    address_from,
    find_profile,
    profile_from,
)


async def get_profile(database: Database, user_id: UUID) -> Profile:
    """The profile as it stands. 503 `unavailable`. One index read."""
    return await retried(partial(find_profile, database, user_id))


async def get_address(database: Database, user_id: UUID, address_id: UUID) -> Address:
    """The customer's address, retired or not. 404 `not_found`, 503 `unavailable`. One index read."""
    rows = await database.read(GET_ADDRESS, user_id=user_id, address_id=address_id)
    if not rows:
        raise not_found()
    return address_from(rows[0])


async def list_addresses(database: Database, user_id: UUID) -> list[Address]:
    """The addresses in use, as they were made. 503 `unavailable`. One index range."""
    return [address_from(row) for row in await database.read(LIST_ADDRESSES, user_id=user_id)]


async def export(database: Database, user_id: UUID) -> Export:
    """All there is of the customer. 503 `unavailable`. One statement, at most ADDRESSES_KEPT_MAX rows."""
    rows = await database.read(EXPORT, user_id=user_id)
    profile = profile_from(rows[0], user_id) if rows else unwritten(user_id)
    return Export(profile, tuple(address_from(row) for row in rows if row["address_id"] is not None))


async def look(database: Database) -> None:
    """Profiles can be read. TransientError when the database does not answer."""
    await database.rows(GET_PROFILE, user_id=UUID(int=0))
