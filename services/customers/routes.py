"""What customers-api serves: every path, who may call it, and how it is described."""

from typing import Final

from services.common import openapi
from services.common.http import AnyOf, Public, Route
from services.common.openapi import IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH, JSON, MERGE_PATCH, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer
from services.customers import addresses, answers, schemas
from services.customers.endpoints import (
    PROFILE,
    add_address,
    change_profile,
    erase_customer,
    export_customer,
    get_address,
    get_health,
    get_profile,
    get_readiness,
    list_addresses,
    replace_address,
    retire_address,
)

SCOPES: Final = {PROFILE: "read, change, export and erase one's own profile and addresses"}

_BUSY: Final[openapi.Refusals] = {
    "request_in_progress": (409, "Another request of this customer is still under way."),
}


def _refused(*codes: str) -> openapi.Refusals:
    return {code: addresses.REFUSALS[code] for code in codes} | _BUSY


_GET: Final = Operation(
    answers.ProfileAnswer,
    headers=(IF_NONE_MATCH,),
    answer_headers=("ETag", "X-Cache", "Age"),
    description="Everybody has one. It is empty, at version 1, until it is first written; empty again, at a version of"
    " its own, when it was erased.",
)
_CHANGE: Final = Operation(
    answers.ProfileAnswer,
    body=schemas.ProfilePatch,
    body_types=(MERGE_PATCH, JSON),
    headers=(IF_MATCH,),
    answer_headers=("ETag",),
    description="The first one makes somebody a customer. A version that was seen before an erasure never comes back.",
)
_ERASE: Final = Operation(
    None,
    status=204,
    description="Profile and addresses are gone for good, keys of requests too. Orders stay, with the ids of addresses"
    " that nobody can look up any more. Again, it changes nothing.",
)
_EXPORT: Final = Operation(
    answers.ExportAnswer,
    description="Orders are not kept here: `orders.href` says where they are, with a token that has `orders.scope`.",
)
_LIST: Final = Operation(answers.AddressesPage, description="Those in use; the retired ones are in the export.")
_ADD: Final = Operation(
    answers.AddressAnswer,
    status=201,
    body=schemas.AddressBody,
    headers=(IDEMPOTENCY_KEY,),
    answer_headers=("Location",),
    refusals=_refused("profile_missing", "too_many_addresses"),
    description="`address_id` is what an order takes as `shipping_address_id`. An address never changes under its id.",
)
_GET_ADDRESS: Final = Operation(answers.AddressAnswer, description="Retired ones, too: an order may name them.")
_REPLACE: Final = Operation(
    answers.AddressAnswer,
    may_create=True,
    body=schemas.AddressBody,
    refusals=_refused("address_retired", "too_many_addresses"),
    description="The address is retired and a new one, with an id of its own, takes its place: orders that name the old"
    " one are shipped where it says. Nothing is made when it says the same already, or when the request is repeated.",
)
_RETIRE: Final = Operation(
    None, status=204, refusals=_BUSY, description="It is offered no more. Orders that name it still find it."
)
_READY: Final = Operation(ReadinessAnswer, refusals=openapi.UNAVAILABLE)

_OWN: Final = AnyOf((PROFILE,))
_ADDRESSES: Final = "/v1/me/addresses"
_ID: Final = "/v1/me/addresses/{address_id}"

ROUTES: Final = (
    Route("GET", "/v1/me", get_profile, _OWN, "Get one's own profile", "profile", _GET),
    Route("PATCH", "/v1/me", change_profile, _OWN, "Change one's own profile", "profile", _CHANGE),
    Route("DELETE", "/v1/me", erase_customer, _OWN, "Erase profile and addresses", "profile", _ERASE),
    Route("GET", "/v1/me/export", export_customer, _OWN, "Get all that is stored of oneself", "profile", _EXPORT),
    Route("POST", _ADDRESSES, add_address, _OWN, "Add an address", "addresses", _ADD),
    Route("GET", _ADDRESSES, list_addresses, _OWN, "List one's own addresses", "addresses", _LIST),
    Route("GET", _ID, get_address, _OWN, "Get an address", "addresses", _GET_ADDRESS),
    Route("PUT", _ID, replace_address, _OWN, "Replace an address", "addresses", _REPLACE),
    Route("DELETE", _ID, retire_address, _OWN, "Retire an address", "addresses", _RETIRE),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can requests be served", "health", _READY),
)
