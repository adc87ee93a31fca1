"""HTTP only: parse, call one command or query, set headers. The table of routes is at the end."""

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from fastapi import Request, Response

from services.common import clock, http, ids
from services.common.auth import Claims
from services.common.clock import Clock
from services.common.db import Database, TransientError
from services.common.errors import DomainError, not_found, unavailable
from services.common.http import AnyOf, JsonResponse, Public, Route, Writes, read_json, validated
from services.common.idempotency import HEADER, key_from, request_hash
from services.common.ids import OrderKey
from services.orders import commands, queries, schemas
from services.orders.commands import Caller, Key, Line, Outcome, Placement
from services.orders.domain import CancelReason, Command
from services.orders.queries import Position, Reader

READ: Final = "orders:read"
READ_ANY: Final = "orders:read:any"
WRITE: Final = "orders:write"
PRICE: Final = "orders:price"
FULFIL: Final = "orders:fulfil"


@dataclass(slots=True)
class Context:
    """What the endpoints of this process work with."""

    database: Database
    wake: Callable[[], None]
    writes: Writes
    now: Clock
    expires_after: timedelta
    months_ahead: int
    first_month: datetime = clock.EPOCH  # of the partitions there are; kept fresh by the process
    degraded: Callable[[], list[str]] = list


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the lifespan of every process that has these routes
    return found


async def place_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders."""
    at = context(request)
    key = key_from(request.headers.get(HEADER))
    content = await read_json(request)
    body = validated(schemas.PlaceOrderBody, content)
    if PRICE not in claims.scopes and (body.adjustments is not None or body.user_id is not None):
        raise DomainError(
            "scope_missing", 403, f"`adjustments` and `user_id` need {PRICE}.", extra={"required": [PRICE]}
        )
    if body.adjustments:
        raise DomainError("not_supported_yet", 422, "`adjustments` are not supported yet.")
    user_id = claims.user_id if body.user_id is None else UUID(body.user_id)
    placement = Placement(
        user_id=user_id,
        actor=f"user:{user_id}" if user_id == claims.user_id else f"staff:{claims.user_id}",
        currency=body.currency,
        lines=[
            Line(ids.from_text(item.product_id), item.product_id, item.quantity, item.unit_price) for item in body.items
        ],
        agreed_prices=PRICE in claims.scopes,
        payment_method=body.payment_method,
        shipping_address_id=body.shipping_address_id,
    )
    outcome = await at.writes.finish(
        commands.place_order(
            at.database,
            placement,
            Key(claims.subject, key, request_hash("POST", request.url.path, content)),
            now=at.now(),
            traceparent=request.state.traceparent,
            expires_after=at.expires_after,
        )
    )
    return _answer(at, outcome, status_code=201, headers={"Location": f"/v1/orders/{outcome.order.order_id}"})


async def get_order(request: Request, claims: Claims) -> Response:
    """GET /v1/orders/{order_id}."""
    at = context(request)
    query = validated(schemas.OrderQuery, dict(request.query_params))
    order = await queries.get_order(at.database, _order_key(request, at), _reader(claims))
    if query.min_version is not None and order.version < query.min_version:
        raise DomainError(
            "version_not_reached",
            409,
            "The order has not reached that version.",
            extra={"current_version": order.version},
        )
    headers = {"ETag": http.etag(order.version)}
    if not http.none_match(request.headers.get("if-none-match"), order.version):
        return Response(status_code=304, headers=headers)
    return JsonResponse(schemas.render_order(order), headers=headers)


async def list_orders(request: Request, claims: Claims) -> Response:
    """GET /v1/orders."""
    at = context(request)
    query = validated(schemas.ListQuery, dict(request.query_params))
    user_id = claims.user_id
    if query.user_id is not None and query.user_id != str(user_id):
        if READ_ANY not in claims.scopes:
            raise _scope_missing("Other people's orders", READ_ANY)
        user_id = UUID(query.user_id)
    filters = hashlib.sha256(f"{user_id} {query.status} {query.created_from} {query.created_to}".encode()).digest()[:8]
    before = (
        _position(query.cursor, filters)
        if query.cursor is not None
        else Position(query.created_to or at.now() + ids.CLOCK_SKEW, UUID(int=0))
    )
    page = await queries.list_orders(
        at.database,
        user_id,
        status=query.status,
        from_at=max(query.created_from or at.first_month, at.first_month),
        before=before,
        limit=query.limit,
    )
    cursor = None if page.next_position is None else _cursor(page.next_position, filters)
    return JsonResponse(schemas.render_page([schemas.order_content(order) for order in page.orders], cursor))


async def get_events(request: Request, claims: Claims) -> Response:
    """GET /v1/orders/{order_id}/events."""
    at = context(request)
    query = validated(schemas.EventsQuery, dict(request.query_params))
    version, events = await queries.get_events(
        at.database,
        _order_key(request, at),
        _reader(claims),
        after_version=query.after_version,
        limit=query.limit,
    )
    last = events[-1].version if events else version
    return JsonResponse(schemas.render_events(events, str(last) if last < version else None))


async def cancel_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/cancel."""
    at = context(request)
    key = key_from(request.headers.get(HEADER))
    content = await read_json(request, empty={})
    body = validated(schemas.CancelBody, content)
    staff = FULFIL in claims.scopes
    if not staff and body.reason not in {None, CancelReason.CUSTOMER.value}:
        raise _scope_missing("That reason", FULFIL)
    reason = body.reason or (CancelReason.STAFF if staff else CancelReason.CUSTOMER).value
    return await _command(request, at, claims, Command.CANCEL, {"cancel_reason": reason}, key, content)


async def ship_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/ship."""
    at = context(request)
    key = key_from(request.headers.get(HEADER))
    content = await read_json(request, empty={})
    body = validated(schemas.ShipBody, content)
    if body.items is not None:
        raise DomainError("not_supported_yet", 422, "Partial shipments (`items`) are not supported yet.")
    return await _command(request, at, claims, Command.SHIP, {"tracking": body.tracking}, key, content)


async def deliver_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/deliver."""
    at = context(request)
    key = key_from(request.headers.get(HEADER))
    content = await read_json(request, empty={})
    validated(schemas.DeliverBody, content)
    return await _command(request, at, claims, Command.DELIVER, {}, key, content)


async def get_inventory(request: Request, _: Claims) -> Response:
    """GET /v1/inventory/{product_id}."""
    text = request.path_params["product_id"]
    try:
        product_id = ids.from_text(text)
    except ValueError:
        raise not_found() from None
    stock = await queries.get_stock(context(request).database, product_id)
    content = {
        "product_id": ids.to_text(product_id),
        "on_hand": stock.on_hand,
        "reserved": stock.reserved,
        "available": stock.on_hand - stock.reserved,
        "version": stock.version,
    }
    return JsonResponse(content, headers={"ETag": http.etag(stock.version)})


async def get_health(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz: requests can be served; what is not as it should be stands in `warnings`."""
    at = context(request)
    try:
        months = await queries.get_months(at.database)
    except TransientError as error:
        raise unavailable("The database does not answer.") from error
    verdict = queries.judge_months(months, at.now(), months_ahead=at.months_ahead)
    if verdict.missing:
        raise unavailable(f"Partitions are missing: {', '.join(verdict.missing)}.", retry_after_seconds=10)
    return JsonResponse({"status": "ok", "warnings": [*verdict.warnings, *at.degraded()]})


async def _command(
    request: Request, at: Context, claims: Claims, command: Command, details: dict[str, Any], key: str, content: object
) -> Response:
    staff = FULFIL in claims.scopes
    outcome = await at.writes.finish(
        commands.command_order(
            at.database,
            _order_key(request, at),
            command,
            details,
            Caller(claims.user_id, f"{'staff' if staff else 'user'}:{claims.user_id}", any_owner=staff),
            Key(claims.subject, key, request_hash("POST", request.url.path, content)),
            if_match=http.if_match_version(request.headers.get("if-match")),
            now=at.now(),
            traceparent=request.state.traceparent,
        )
    )
    return _answer(at, outcome, status_code=200, headers={})


def _answer(at: Context, outcome: Outcome, *, status_code: int, headers: dict[str, str]) -> Response:
    headers["ETag"] = http.etag(outcome.order.version)
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    else:
        at.wake()
    return JsonResponse(schemas.render_order(outcome.order), status_code=status_code, headers=headers)


def _scope_missing(what: str, scope: str) -> DomainError:
    return DomainError("scope_missing", 403, f"{what}: {scope} is needed.", extra={"required": [scope]})


def _order_key(request: Request, at: Context) -> OrderKey:
    return ids.order_key_in_path(request.path_params["order_id"], first=at.first_month, now=at.now())


def _reader(claims: Claims) -> Reader:
    return Reader(claims.user_id, any_owner=READ_ANY in claims.scopes)


def _cursor(position: Position, filters: bytes) -> str:
    """A position's time is the time in its id; the hash ties it to the filters (and the buyer) it was made for."""
    bits = position.order_id.int or clock.to_ms(position.created_at) << 80
    return base64.urlsafe_b64encode(bits.to_bytes(16) + filters).decode()


def _position(cursor: str, filters: bytes) -> Position:
    try:
        raw = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True)
        order_id = UUID(bytes=raw[:16])
        created_at = clock.from_ms(order_id.int >> 80)
    except (ValueError, OverflowError):
        raw = b""
    if len(raw) != 24 or raw[16:] != filters:
        raise DomainError("bad_cursor", 400, "The cursor is not one we gave for this query.")
    return Position(created_at, order_id)


ROUTES: Final = (
    Route("POST", "/v1/orders", place_order, AnyOf((WRITE,)), "Place an order", "orders"),
    Route("GET", "/v1/orders", list_orders, AnyOf((READ,)), "List orders, newest first", "orders"),
    Route("GET", "/v1/orders/{order_id}", get_order, AnyOf((READ,)), "Get an order", "orders"),
    Route("GET", "/v1/orders/{order_id}/events", get_events, AnyOf((READ,)), "Get an order's events", "orders"),
    Route("POST", "/v1/orders/{order_id}/cancel", cancel_order, AnyOf((WRITE, FULFIL)), "Cancel an order", "commands"),
    Route("POST", "/v1/orders/{order_id}/ship", ship_order, AnyOf((FULFIL,)), "Ship an order", "commands"),
    Route("POST", "/v1/orders/{order_id}/deliver", deliver_order, AnyOf((FULFIL,)), "Deliver an order", "commands"),
    Route("GET", "/v1/inventory/{product_id}", get_inventory, AnyOf(), "Get the stock of a product", "inventory"),
    Route("GET", "/healthz", get_health, Public(), "Is the process alive", "health"),
    Route("GET", "/readyz", get_readiness, Public(), "Can requests be served", "health"),
)
