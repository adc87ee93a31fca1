"""HTTP only: parse, call one command or query, set headers. `routes` says which path each of these answers."""

from collections.abc import AsyncIterator, Sequence
from typing import Final
from uuid import UUID

import orjson
from fastapi import Request, Response

from services.catalog import commands, queries, reads, schemas
from services.catalog.bulk import Bulk, Tell
from services.catalog.commands import Condition, Content, Result, Wanted, Written
from services.catalog.queries import Filters, Place
from services.common import cursors, ids, ndjson
from services.common.auth import Claims
from services.common.cached import Key
from services.common.db_errors import TransientError
from services.common.errors import invalid, not_found, unavailable
from services.common.http_conditional import etag, etag_of, if_changed, if_match_version
from services.common.http_request import header, parameters, parsed_json, read_body, require_media_type, validated
from services.common.http_response import JsonResponse, cached_headers
from services.common.ndjson import StreamedLines
from services.common.resources import Resources
from services.contracts.cache import PRODUCT
from services.contracts.catalog import Product

WRITE: Final = "catalog:write"

# A page may be shown for a minute after it was read, and for five more while a newer one is fetched (RFC 5861).
SHARED: Final = {"Cache-Control": "public, max-age=60, stale-while-revalidate=300"}


class Context(Resources):
    """What the endpoints of this process work with."""


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the lifespan of every process that has these routes
    return found


async def put_product(request: Request, claims: Claims) -> Response:
    """PUT /v1/products/{product_id}."""
    at = context(request)
    body = validated(schemas.ProductBody, parsed_json(await read_body(request)))
    condition, product_id = _condition(request), _product_id(request)

    async def put() -> Written:
        written = await commands.put_product(
            at.database,
            product_id,
            Content(**body.model_dump()),
            condition,
            actor=f"staff:{claims.user_id}",
            now=at.now(),
            traceparent=request.state.traceparent,
        )
        await _tell(at, [written])
        return written

    written = await at.writes.finish(put())
    headers = {"ETag": etag(written.product.version)}
    if written.result is Result.CREATED:
        headers["Location"] = f"/v1/products/{written.product.product_id}"
    return JsonResponse(written.product, status_code=201 if "Location" in headers else 200, headers=headers)


async def put_products(request: Request, claims: Claims) -> Response:
    """POST /v1/products:bulk."""
    require_media_type(request, ndjson.MEDIA_TYPE)
    at = context(request)

    async def put(wanted: Sequence[Wanted]) -> Sequence[Written]:
        written = await commands.put_products(
            at.database,
            wanted,
            actor=f"staff:{claims.user_id}",
            now=at.now(),
            traceparent=request.state.traceparent,
        )
        await _tell(at, written)
        return written

    async def work(body: AsyncIterator[bytes], tell: Tell) -> None:
        await Bulk(request.scope["path"], _wanted, lambda wanted: at.writes.finish(put(wanted)), tell).run(body)

    return StreamedLines(request, work)


async def get_product(request: Request) -> Response:
    """GET /v1/products/{product_id}."""
    at = context(request)
    answer = await reads.get_product(at.database, at.cache, _product_id(request))
    headers = cached_headers(answer)
    # A shared cache counts its minute from when the origin vouches for an answer (RFC 9111, section 4.2.3): from now,
    # however long ago the database was read. With an Age most hits would be too old to be kept anywhere.
    headers.pop("Age", None)
    return _shown(request, answer.entry.body, headers)


async def list_products(request: Request) -> Response:
    """GET /v1/products."""
    query = parameters(schemas.ListQuery, request)
    filters = _filters(query)
    question = f"products {query.sort} {filters}".encode()
    page = await queries.list_products(
        context(request).database,
        query.sort,
        filters,
        after=None if query.cursor is None else _place(query.cursor, question),
        limit=query.limit,
    )
    return _page(request, page.products, None if page.next_place is None else _cursor(page.next_place, question))


async def search_products(request: Request) -> Response:
    """GET /v1/search."""
    query = parameters(schemas.SearchQuery, request)
    products = await queries.search_products(context(request).database, query.q, _filters(query), limit=query.limit)
    return _page(request, products, None)


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


async def _tell(at: Context, written: Sequence[Written]) -> None:
    """Relay and cache know what was written. Never fails: the relay repeats what the cache could not hear."""
    stale = {
        Key(PRODUCT, one.product.product_id): one.product.version for one in written if one.result is Result.CHANGED
    }
    if any(one.result is not Result.UNCHANGED for one in written):
        await at.after_commit(stale)


def _wanted(line: bytes) -> Wanted:
    """What a line of a bulk request says. 400 `malformed_json`, 422 `invalid`."""
    body = validated(schemas.BulkLine, parsed_json(line))
    return Wanted(ids.from_text(body.product_id), Content(**body.model_dump(exclude={"product_id"})))


def _page(request: Request, products: Sequence[Product], next_cursor: str | None) -> Response:
    body = orjson.dumps({"data": products, "next_cursor": next_cursor})
    return _shown(request, body, {"ETag": etag_of(body)})


def _shown(request: Request, body: bytes, headers: dict[str, str]) -> Response:
    """What anybody may keep for a while; 304 for who has it already."""
    headers |= SHARED
    if not if_changed(header(request, b"if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return JsonResponse(body, headers=headers)


def _filters(query: schemas.FindQuery) -> Filters:
    return Filters(query.active, query.currency, query.price_from, query.price_to)


def _cursor(place: Place, question: bytes) -> str:
    """The cursor of a place: it goes on with the same order and filters, and with nothing else."""
    return cursors.sealed_bytes(place.product_id.bytes + place.name_key.encode(), question)


def _place(cursor: str, question: bytes) -> Place:
    raw = cursors.opened_bytes(cursor, question)
    try:
        name_key = raw[16:].decode()
        product_id = UUID(bytes=raw[:16])
    except ValueError:  # a forged one
        raise cursors.bad_cursor() from None
    if "\0" in name_key:
        raise cursors.bad_cursor()
    return Place(name_key, product_id)


def _condition(request: Request) -> Condition:
    """What the headers ask for. 422 `invalid` when no state could satisfy it, or it asks for something else."""
    if_match, if_none_match = (request.headers.get(name) for name in ("if-match", "if-none-match"))
    if if_none_match is not None and (if_none_match.strip() != "*" or if_match is not None):
        raise invalid("With PUT, If-None-Match can only be *, and not together with If-Match.")
    return Condition(if_match_version(if_match), must_be_new=if_none_match is not None)


def _product_id(request: Request) -> UUID:
    try:
        return ids.from_text(request.path_params["product_id"])
    except ValueError:
        raise not_found() from None
