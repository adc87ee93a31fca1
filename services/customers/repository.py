"""SQL of profiles and addresses. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type.

Whatever changes a customer's addresses, or erases them, locks the row of the profile first, in a statement before: so
the writes of one customer come one after another, and each sees what the one before has left.
"""

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from services.common import db
from services.common.db import Database, Row, Statement
from services.customers import personal
from services.customers.domain import Address, Profile, unwritten
from services.customers.personal import Person
from services.customers.tables import metadata

# A parameter named like a column has its type; these are the others.
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = db.column_types(metadata)


def _statement(name: str, sql: str) -> Statement:
    return db.statement(name, sql, _TYPES)


# Index: primary key.
GET_PROFILE: Final = _statement(
    "get_profile", "SELECT version, person, updated_at FROM customers.profiles WHERE user_id = :user_id"
)

# The profile becomes `version`, from the one before it: from none at all, which is version 1, or from the row, whose
# lock lasts to the commit. No row: it is at another version. Index: primary key.
PUT_PROFILE: Final = _statement(
    "put_profile",
    """
WITH created AS (
    INSERT INTO customers.profiles (user_id, version, person, updated_at)
    SELECT :user_id, :version, :person, :updated_at
    WHERE :version = 2
    ON CONFLICT (user_id) DO NOTHING
    RETURNING version
), changed AS (
    UPDATE customers.profiles
    SET version = :version, person = :person, updated_at = :updated_at
    WHERE user_id = :user_id AND version = :version - 1
    RETURNING version
), written AS (
    SELECT version FROM created UNION ALL SELECT version FROM changed
)
INSERT INTO customers.invalidations (shard, slice, keys)
SELECT :shard, :slice, jsonb_build_object('customers:profile', jsonb_build_object(:user_id, version)) FROM written
RETURNING TRUE AS written
""",
)

# What is there goes and its version stays, so that nothing that was decided before can be written after. Also where
# nothing was: a first write that is still under way is refused. The row is locked in any case. Index: primary key.
ERASE_PROFILE: Final = _statement(
    "erase_profile",
    """
WITH written AS (
    INSERT INTO customers.profiles AS p (user_id, version, person, updated_at)
    VALUES (:user_id, 2, NULL, :updated_at)
    ON CONFLICT (user_id) DO UPDATE SET version = p.version + 1, person = NULL, updated_at = :updated_at
    WHERE p.person IS NOT NULL
    RETURNING version
)
INSERT INTO customers.invalidations (shard, slice, keys)
SELECT :shard, :slice, jsonb_build_object('customers:profile', jsonb_build_object(:user_id, version)) FROM written
RETURNING TRUE AS written
""",
)
# Index: the start of the primary key.
DELETE_ADDRESSES: Final = _statement("delete_addresses", "DELETE FROM customers.addresses WHERE user_id = :user_id")

# Gives nobody who has no profile, or has erased it. Index: primary key.
LOCK_CUSTOMER: Final = _statement(
    "lock_customer",
    "SELECT TRUE AS locked FROM customers.profiles WHERE user_id = :user_id AND person IS NOT NULL FOR NO KEY UPDATE",
)

# Indexes: the start of the primary key, at most ADDRESSES_KEPT_MAX rows; and that of the keys.
GET_HELD: Final = _statement(
    "get_held",
    """
SELECT held.used, held.kept, a.request_hash, a.address_id, a.destination, a.created_at, a.retired_at, a.replaced_by
FROM (
    SELECT count(*) FILTER (WHERE retired_at IS NULL) AS used, count(*) AS kept
    FROM customers.addresses WHERE user_id = :user_id
) held
LEFT JOIN customers.addresses a ON a.user_id = :user_id AND a.key = :key
""",
)
ADD_ADDRESS: Final = _statement(
    "add_address",
    """
INSERT INTO customers.addresses (user_id, address_id, destination, created_at, key, request_hash)
VALUES (:user_id, :address_id, :destination, :created_at, :key, :request_hash)
""",
)
# Index: primary key.
RETIRE_ADDRESS: Final = _statement(
    "retire_address",
    """
UPDATE customers.addresses SET retired_at = :retired_at, replaced_by = :replaced_by
WHERE user_id = :user_id AND address_id = :address_id AND retired_at IS NULL
""",
)
# Index: primary key.
GET_ADDRESS: Final = _statement(
    "get_address",
    "SELECT address_id, destination, created_at, retired_at, replaced_by FROM customers.addresses"
    " WHERE user_id = :user_id AND address_id = :address_id",
)
# Index: the start of the primary key, in its order: that of the ids, which is that of their making.
LIST_ADDRESSES: Final = _statement(
    "list_addresses",
    "SELECT address_id, destination, created_at, retired_at, replaced_by FROM customers.addresses"
    " WHERE user_id = :user_id AND retired_at IS NULL ORDER BY address_id",
)
# One statement, so that both are of one moment; without an address, one row all the same. Indexes: as above.
EXPORT: Final = _statement(
    "export_customer",
    """
SELECT p.version, p.person, p.updated_at, a.address_id, a.destination, a.created_at, a.retired_at, a.replaced_by
FROM customers.profiles p LEFT JOIN customers.addresses a ON a.user_id = p.user_id
WHERE p.user_id = :user_id
ORDER BY a.address_id
""",
)


def profile_from(row: Row, user_id: UUID) -> Profile:
    """The profile a row is."""
    if row["person"] is None:
        return Profile(user_id, row["version"], Person(), None)
    return Profile(user_id, row["version"], personal.person(row["person"]), row["updated_at"])


def address_from(row: Row) -> Address:
    """The address a row is."""
    return Address(
        address_id=row["address_id"],
        destination=personal.destination(row["destination"]),
        created_at=row["created_at"],
        retired_at=row["retired_at"],
        replaced_by=row["replaced_by"],
    )


async def find_profile(database: Database, user_id: UUID) -> Profile:
    """The profile as it stands. One index read. Raises TransientError."""
    rows = await database.rows(GET_PROFILE, user_id=user_id)
    return profile_from(rows[0], user_id) if rows else unwritten(user_id)
