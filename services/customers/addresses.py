"""What changes a customer's addresses: adding, replacing, retiring. One function is one transaction.

An address never changes: orders name it by its id, and it stays what it was for them. So its id is its version, too:
who wants to replace or retire one names what they have seen.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from prometheus_client import Counter

from services.common import ids
from services.common.db import Database, Row, WriteConnection
from services.common.db_errors import LockTimeoutError, retried
from services.common.errors import DomainError, not_found
from services.common.idempotency import key_reused
from services.customers import personal
from services.customers.domain import ADDRESSES_KEPT_MAX, ADDRESSES_MAX, Address
from services.customers.personal import Destination
from services.customers.repository import (
    ADD_ADDRESS,
    GET_ADDRESS,
    GET_HELD,
    LOCK_CUSTOMER,
    RETIRE_ADDRESS,
    address_from,
)

addresses_written_total = Counter("addresses_written_total", "Writes of addresses, by what they did", ["result"])

# What is refused because of what there is, and what a person is told.
REFUSALS: Final[dict[str, tuple[int, str]]] = {
    "profile_missing": (409, "There is no profile, or it was erased: write it with PATCH /v1/me first."),
    "too_many_addresses": (
        409,
        f"A customer has at most {ADDRESSES_MAX} addresses in use, and {ADDRESSES_KEPT_MAX} with the retired ones.",
    ),
    "address_retired": (409, "The address was retired, or replaced by another."),
}


@dataclass(frozen=True, slots=True)
class Key:
    """An idempotency key as sent, and the hash of what was asked."""

    key: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Written:
    """The address, and what the request did: `created`, `replayed`, `replaced` or `unchanged`."""

    address: Address
    result: str


async def add_address(
    database: Database, user_id: UUID, destination: Destination, key: Key, *, now: datetime
) -> Written:
    """The customer has that address, once for the key; a replay gives it as it was at first.

    Four round trips and a commit, under the lock of the profile's row. Refusals, which store nothing: 422 `key_reused`,
    409 `profile_missing`, `too_many_addresses`, `request_in_progress`, 503 `unavailable`.
    """
    made = Address(ids.new_id(now), destination, now)  # once, outside any retry: it tells our own row from another's

    async def once() -> Written:
        async with database.transaction() as connection:
            if not await _locked(connection, user_id):
                raise _refusal("profile_missing")
            held = await _held(connection, user_id, key.key)
            if held["address_id"] is not None:
                return _known(held, made, key)
            _check_room(held, used_more=1)
            await _add(connection, user_id, made, key)
        return Written(made, "created")

    return await _counted(once)


async def replace_address(
    database: Database, user_id: UUID, address_id: UUID, destination: Destination, *, now: datetime
) -> Written:
    """The address is retired, and a new one with `destination` is in its place; the same content changes nothing.

    So does the same request again. 404 `not_found`, 409 `address_retired` (with `replaced_by`, null when it was only
    retired), `too_many_addresses`, `request_in_progress`, 503 `unavailable`. Round trips as of `add_address`.
    """
    made = Address(ids.new_id(now), destination, now)

    async def once() -> Written:
        async with database.transaction() as connection:
            current = await _locked_address(connection, user_id, address_id)
            if current.replaced_by is not None:
                successor = await _find(connection, user_id, current.replaced_by)
                if successor.destination == destination and successor.retired_at is None:
                    return Written(successor, "replaced" if successor == made else "unchanged")
            if current.retired_at is not None:
                raise _retired(current)
            if current.destination == destination:
                return Written(current, "unchanged")
            _check_room(await _held(connection, user_id, None), used_more=0)
            await _add(connection, user_id, made, None)
            await _retire(connection, user_id, address_id, now, replaced_by=made.address_id)
        return Written(made, "replaced")

    return await _counted(once)


async def retire_address(database: Database, user_id: UUID, address_id: UUID, *, now: datetime) -> None:
    """The address is used no more; orders that name it still find it. Again, it changes nothing.

    404 `not_found`, 409 `request_in_progress`, 503 `unavailable`. Round trips as of `add_address`.
    """

    async def once() -> Written:
        async with database.transaction() as connection:
            current = await _locked_address(connection, user_id, address_id)
            if current.retired_at is not None:
                return Written(current, "unchanged")
            await _retire(connection, user_id, address_id, now, replaced_by=None)
        return Written(current, "retired")

    await _counted(once)


async def _locked(connection: WriteConnection, user_id: UUID) -> bool:
    """The customer's writes wait for this one; False when there is no profile. Also 409 `request_in_progress`."""
    try:
        return bool(await LOCK_CUSTOMER.rows(connection, user_id=user_id))
    except LockTimeoutError as error:
        raise DomainError(
            "request_in_progress",
            409,
            "Another request of this customer is still under way.",
            headers={"Retry-After": "1"},
        ) from error


async def _locked_address(connection: WriteConnection, user_id: UUID, address_id: UUID) -> Address:
    """The customer's address, as it stays until the commit. 404 `not_found`, 409 `request_in_progress`."""
    if not await _locked(connection, user_id):
        raise not_found()
    return await _find(connection, user_id, address_id)


async def _find(connection: WriteConnection, user_id: UUID, address_id: UUID) -> Address:
    rows = await GET_ADDRESS.rows(connection, user_id=user_id, address_id=address_id)
    if not rows:
        raise not_found()
    return address_from(rows[0])


async def _held(connection: WriteConnection, user_id: UUID, key: str | None) -> Row:
    """How many addresses are `used` and `kept`, and the one that was added with `key`, all null without one."""
    return (await GET_HELD.rows(connection, user_id=user_id, key=key))[0]


async def _add(connection: WriteConnection, user_id: UUID, made: Address, key: Key | None) -> None:
    await ADD_ADDRESS.rows(
        connection,
        user_id=user_id,
        address_id=made.address_id,
        destination=personal.sealed(made.destination),
        created_at=made.created_at,
        key=None if key is None else key.key,
        request_hash=None if key is None else key.request_hash,
    )


async def _retire(
    connection: WriteConnection, user_id: UUID, address_id: UUID, at: datetime, *, replaced_by: UUID | None
) -> None:
    await RETIRE_ADDRESS.rows(
        connection, user_id=user_id, address_id=address_id, retired_at=at, replaced_by=replaced_by
    )


def _known(held: Row, made: Address, key: Key) -> Written:
    """What was first answered to the key: the address as it was made. 422 `key_reused`."""
    if held["request_hash"] != key.request_hash:
        raise key_reused()
    first = Address(held["address_id"], personal.destination(held["destination"]), held["created_at"])
    return Written(first, "created" if first == made else "replayed")


def _check_room(held: Row, *, used_more: int) -> None:
    """409 `too_many_addresses` when one more is too many."""
    if held["used"] + used_more > ADDRESSES_MAX or held["kept"] + 1 > ADDRESSES_KEPT_MAX:
        raise _refusal("too_many_addresses", used=held["used"], kept=held["kept"])


def _retired(address: Address) -> DomainError:
    successor = address.replaced_by
    return _refusal("address_retired", replaced_by=None if successor is None else ids.to_text(successor))


def _refusal(code: str, **extra: object) -> DomainError:
    status, detail = REFUSALS[code]
    return DomainError(code, status, detail, extra=extra)


async def _counted(once: Callable[[], Awaitable[Written]]) -> Written:
    written = await retried(once)
    addresses_written_total.labels(written.result).inc()
    return written
