"""HTTP only: parse, call one command or query, set headers. `routes` says which path each of these answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from fastapi import Request, Response

from services.catalog import commands, queries, schemas
from services.catalog.commands import Condition, Content, Result
from services.common import cursors, http, ids
from services.common.auth import Claims
from services.common.clock import Clock
from services.common.db import Database, TransientError
from services.common.errors import invalid, not_found, unavailable
from services.common.http import JsonResponse, Writes, parameters, parsed_json, read_body, validated

WRITE: Final = "catalog:write"

FIRST_ID: Final = UUID(int=0)
ALL_PRODUCTS: Final = b"products"  # what a cursor of theirs goes on with
# A page may be shown for a minute after it was read, and for five more while a newer one is fetched (RFC 5861).
SHARED: Final = {"Cache-Control": "public, max-age=60, stale-while-revalidate=300"}


@dataclass(slots=True)
class Context:
    """What the endpoints of this process work with."""

    database: Database
    wake: Callable[[], None]
    writes: Writes
    now: Clock
    degraded: Callable[[], list[str]] = list


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the lifespan of every process that has these routes
    return found


async def put_product(request: Request, claims: Claims) -> Response:
    """PUT /v1/products/{product_id}."""
    at = context(request)
    body = validated(schemas.ProductBody, parsed_json(await read_body(request)))
    condition = _condition(request)
    written = await at.writes.finish(
        commands.put_product(
            at.database,
            _product_id(request),
            Content(**body.model_dump()),
            condition,
            actor=f"staff:{claims.user_id}",
            now=at.now(),
            traceparent=request.state.traceparent,
        )
    )
    if written.result is not Result.UNCHANGED:
        at.wake()
    headers = {"ETag": http.etag(written.product.version)}
    if written.result is Result.CREATED:
        headers["Location"] = f"/v1/products/{written.product.product_id}"
    return JsonResponse(written.product, status_code=201 if "Location" in headers else 200, headers=headers)


async def get_product(request: Request) -> Response:
    """GET /v1/products/{product_id}."""
    product = await queries.get_product(context(request).database, _product_id(request))
    headers = SHARED | {"ETag": http.etag(product.version)}
    if not http.none_match(request.headers.get("if-none-match"), product.version):
        return Response(status_code=304, headers=headers)
    return JsonResponse(product, headers=headers)


async def list_products(request: Request) -> Response:
    """GET /v1/products."""
    query = parameters(schemas.ListQuery, request)
    from_id = FIRST_ID if query.cursor is None else cursors.opened(query.cursor, ALL_PRODUCTS)
    page = await queries.list_products(context(request).database, from_id=from_id, limit=query.limit)
    next_cursor = None if page.next_id is None else cursors.sealed(page.next_id, ALL_PRODUCTS)
    return JsonResponse({"data": page.products, "next_cursor": next_cursor}, headers=SHARED)


async def get_health(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz: requests can be served; what is not as it should be stands in `warnings`."""
    at = context(request)
    try:
        await queries.look(at.database)
    except TransientError as error:
        raise unavailable("The database does not answer.") from error
    return JsonResponse({"status": "ok", "warnings": at.degraded()})


def _condition(request: Request) -> Condition:
    """What the headers ask for. 422 `invalid` when no state could satisfy it, or it asks for something else."""
    if_match, if_none_match = (request.headers.get(name) for name in ("if-match", "if-none-match"))
    if if_none_match is not None and (if_none_match.strip() != "*" or if_match is not None):
        raise invalid("With PUT, If-None-Match can only be *, and not together with If-Match.")
    return Condition(http.if_match_version(if_match), must_be_new=if_none_match is not None)


def _product_id(request: Request) -> UUID:
    try:
        return ids.from_text(request.path_params["product_id"])
    except ValueError:
        raise not_found() from None
