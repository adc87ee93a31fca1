"""What catalog-api serves: every path, who may call it, and how it is described."""

from typing import Final

from services.catalog import schemas
from services.catalog.bulk import BATCH_LINES
from services.catalog.endpoints import (
    WRITE,
    get_health,
    get_product,
    get_readiness,
    list_products,
    put_product,
    put_products,
    search_products,
)
from services.common import ndjson, openapi
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
_BULK: Final = Operation(
    schemas.BulkAnswer,
    media_type=ndjson.MEDIA_TYPE,
    body=schemas.BulkLine,
    refusals={"media_type": (415, f"The body is not {ndjson.MEDIA_TYPE}.")},
    description="One product a line, of at most 64 KiB, as many lines as you like. Each is put as it is, whatever was"
    f" there; what is the same already is not written. Batches of up to {BATCH_LINES} lines are committed whole, in"
    " order. The answer has a line for each line and comes while you send; one that stops in the middle, or ends with"
    " `stopped`, says what was taken. Send all of it again: that is harmless.",
)
_GET: Final = Operation(
    schemas.ProductAnswer,
    headers=(IF_NONE_MATCH,),
    answer_headers=("ETag", "X-Cache"),
    refusals=UNAVAILABLE,
)
_LIST: Final = Operation(
    schemas.ProductsPage,
    query=schemas.ListQuery,
    headers=(IF_NONE_MATCH,),
    answer_headers=("ETag",),
    refusals={"bad_cursor": (400, "The cursor is not one we gave for this query."), **UNAVAILABLE},
    description="A page may be short, or empty, and still have a `next_cursor`: follow it to null. By name, whoever is"
    " renamed meanwhile may be met twice, or not; by id, what was there is met once.",
)
_SEARCH: Final = Operation(
    schemas.ProductsPage,
    query=schemas.SearchQuery,
    headers=(IF_NONE_MATCH,),
    answer_headers=("ETag",),
    refusals=UNAVAILABLE,
    description="Best first: what is called exactly so; what has all of the words in its name; in name and description;"
    " what has words in its name that are spelled alike. Endings are those of English. At most `limit`, and no"
    " `next_cursor`: ask more narrowly.",
)
_READY: Final = Operation(ReadinessAnswer, refusals=UNAVAILABLE)

_ID: Final = "/v1/products/{product_id}"

ROUTES: Final = (
    Route("PUT", _ID, put_product, AnyOf((WRITE,)), "Create or change a product", "products", _PUT),
    Route("POST", "/v1/products:bulk", put_products, AnyOf((WRITE,)), "Create or replace many", "products", _BULK),
    Route("GET", _ID, get_product, Public(), "Get a product", "products", _GET),
    Route("GET", "/v1/products", list_products, Public(), "List products", "products", _LIST),
    Route("GET", "/v1/search", search_products, Public(), "Search products", "products", _SEARCH),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health", Operation(HealthAnswer)),
    Route("GET", "/readyz", get_readiness, Public(), "Can requests be served", "health", _READY),
)
