"""What goes out: how answers are rendered, and the models that describe them. Tests hold the one against the other."""

from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, Field, JsonValue

from services.common import clock, ids, openapi
from services.common.schemas import AT, Time, UlidText, Version, example
from services.customers.domain import Address, Export, Profile
from services.customers.schemas import DESTINATION, PERSON, USER_ID, Country, UserId

_ADDRESS: Final[dict[str, JsonValue]] = {
    "address_id": openapi.ULID_EXAMPLE,
    **DESTINATION,
    "created_at": AT,
    "retired_at": None,
    "replaced_by": None,
}
_PROFILE: Final[dict[str, JsonValue]] = {"user_id": USER_ID, **PERSON, "version": 2, "updated_at": AT}
_ORDERS: Final = "http://127.0.0.1:8000/v1/orders"


class ProfileAnswer(BaseModel):
    """The profile as it stands; `updated_at` is null while it holds nothing."""

    model_config = example(**_PROFILE)

    user_id: UserId
    name: str | None
    email: str | None
    phone: str | None
    version: Version
    updated_at: Time | None


class AddressAnswer(BaseModel):
    """An address. All but the last two members never change."""

    model_config = example(**_ADDRESS)

    address_id: UlidText
    name: str
    lines: list[str]
    city: str
    region: str | None
    postal_code: str | None
    country: Country
    phone: str | None
    created_at: Time
    retired_at: Time | None = Field(description="when it was retired or replaced; null while it is in use")
    replaced_by: UlidText | None = Field(description="the address that took its place")


class AddressesPage(BaseModel):
    """The addresses in use, in the order in which they were made: all of them are one page."""

    data: list[AddressAnswer]
    next_cursor: None


class OrdersLink(BaseModel):
    """Where the customer's orders are: another API keeps them."""

    href: str
    scope: str = Field(description="what a token needs there")


class ExportAnswer(BaseModel):
    """All that is stored here of the customer, at one moment; of addresses the retired ones, too."""

    model_config = example(
        exported_at=AT, profile=_PROFILE, addresses=[_ADDRESS], orders={"href": _ORDERS, "scope": "orders:read"}
    )

    exported_at: Time
    profile: ProfileAnswer
    addresses: list[AddressAnswer]
    orders: OrdersLink


def profile_content(profile: Profile) -> dict[str, Any]:
    """The profile as an answer shows it."""
    person = profile.person
    return {
        "user_id": str(profile.user_id),
        "name": person.name,
        "email": person.email,
        "phone": person.phone,
        "version": profile.version,
        "updated_at": _time(profile.updated_at),
    }


def address_content(address: Address) -> dict[str, Any]:
    """The address as an answer shows it."""
    destination = address.destination
    return {
        "address_id": ids.to_text(address.address_id),
        "name": destination.name,
        "lines": destination.lines,
        "city": destination.city,
        "region": destination.region,
        "postal_code": destination.postal_code,
        "country": destination.country,
        "phone": destination.phone,
        "created_at": _time(address.created_at),
        "retired_at": _time(address.retired_at),
        "replaced_by": None if address.replaced_by is None else ids.to_text(address.replaced_by),
    }


def export_content(export: Export, *, now: datetime, orders_url: str) -> dict[str, Any]:
    """The export as it is answered; orders are in another schema, so it says where."""
    return {
        "exported_at": _time(now),
        "profile": profile_content(export.profile),
        "addresses": [address_content(address) for address in export.addresses],
        "orders": {"href": f"{orders_url.rstrip('/')}/v1/orders", "scope": "orders:read"},
    }


def _time(at: datetime | None) -> str | None:
    return None if at is None else clock.to_text(at)
