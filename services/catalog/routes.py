"""What catalog-api serves: every path, who may call it, and how it is described."""

from typing import Final

from services.catalog import schemas
from services.catalog.endpoints import (
    WRITE,
    get_health,
    get_product,
    get_readiness,
    list_products,
    put_product,
)
from services.common import openapi
from services.common.http import AnyOf, Public, Route
from services.common.openapi import IF_NONE_MATCH, UNAVAILABLE, Header, Operation
from services.common.schemas import HealthAnswer, ReadinessAnswer

SCOPES: Final = {WRITE: "create and change products"}

_MISMATCH: Final[openapi.Refusals] = {
    "version_mismatch": (412, "It has changed since you saw it, or is there already, or not at all.")
}
_SEEN: Final = Header(
    "If-Match",
    "The ETag of the version to be replaced.",
    '"1"',
    refusals={
        "if_match_missing": (428, "It is there, and not the same: send If-Match with the version you have seen."),
        **_MISMATCH,
    },
)
_NEW: Final = Header("If-None-Match", "Only `*`: the product is not to be there yet.", "*", refusals=_MISMATCH)

_PUT: Final = Operation(
    schemas.ProductAnswer,
    may_create=True,
    body=schemas.ProductBody,
    headers=(_SEEN, _NEW),
    answer_headers=("ETag",),
    description="The id is a ULID that the caller has made. Without a condition the product is created; when it is"
    " there and already all that the body says, nothing is written and no event sent.",
)
_GET: Final = Operation(schemas.ProductAnswer, headers=(IF_NONE_MATCH,), answer_headers=("ETag",), refusals=UNAVAILABLE)
_LIST: Final = Operation(
    schemas.ProductsPage,
    query=schemas.ListQuery,
    refusals={"bad_cursor": (400, "The cursor is not one we gave."), **UNAVAILABLE},
    description="All products, those that are not for sale too, in the order of their ids.",
)
_READY: Final = Operation(ReadinessAnswer, refusals=UNAVAILABLE)

_ID: Final = "/v1/products/{product_id}"

ROUTES: Final = (
    Route("PUT", _ID, put_product, AnyOf((WRITE,)), "Create or change a product", "products", _PUT),
    Route("GET", _ID, get_product, Public(), "Get a product", "products", _GET),
    Route("GET", "/v1/products", list_products, Public(), "List products", "products", _LIST),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can requests be served", "health", _READY),
)
