"""What customers are made of, and what holds for them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from services.customers.personal import Destination, Person

# The version of a profile that nobody has written yet. Versions only ever grow, over an erasure too: whoever has seen
# one from before can never change what comes after.
UNWRITTEN: Final = 1

# In use at a time: beyond any household's, and a page of them is small.
ADDRESSES_MAX: Final = 50
# With the retired ones, which are kept as orders may name them: what one customer can cost, and an export show.
ADDRESSES_KEPT_MAX: Final = 1_000


@dataclass(frozen=True, slots=True)
class Profile:
    """A customer's profile. Everybody has one: it is empty until it is first written, and again when it is erased.

    `updated_at` is None as long as it holds nothing.
    """

    user_id: UUID
    version: int
    person: Person
    updated_at: datetime | None


@dataclass(frozen=True, slots=True)
class Address:
    """An address, which never changes. Retired, it is offered no more; `replaced_by` is the one that took its place."""

    address_id: UUID
    destination: Destination
    created_at: datetime
    retired_at: datetime | None = None
    replaced_by: UUID | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """All that is stored of a customer, at one moment; the addresses as they were made, the retired ones too."""

    profile: Profile
    addresses: tuple[Address, ...]


def unwritten(user_id: UUID) -> Profile:
    """The profile of somebody of whom nothing has ever been stored."""
    return Profile(user_id, UNWRITTEN, Person(), None)
