"""HTTP only: parse, call one command or query, set headers. `routes` says which path each of these answers."""

import hashlib
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar
from uuid import UUID

from fastapi import Request, Response

from services.common import clock, cursors, ids
from services.common.auth import Claims
from services.common.db_errors import TransientError
from services.common.errors import DomainError, not_found, unavailable
from services.common.http_conditional import etag, if_match_version
from services.common.http_request import header, parameters, parsed_json, read_body, validated
from services.common.http_response import CachedResponse, JsonResponse
from services.common.idempotency import HEADER, key_from, request_hash
from services.common.ids import OrderKey
from services.common.resources import Resources
from services.contracts.orders import Adjustment, members_of
from services.orders import answers, commands, queries, reads, schemas, stock, summaries
from services.orders.commands import Caller, Key, Line, Outcome, Placement
from services.orders.domain import CancelReason, Command, Part
from services.orders.queries import Position, Reader
from services.orders.turns import Turns

READ: Final = "orders:read"
READ_ANY: Final = "orders:read:any"
WRITE: Final = "orders:write"
PRICE: Final = "orders:price"
FULFIL: Final = "orders:fulfil"
INVENTORY: Final = "inventory:write"

Written = TypeVar("Written", Outcome, stock.Adjusted)


class Context(Resources):
    """What the endpoints of this process work with."""

    turns: Turns
    expires_after: timedelta
    months_ahead: int
    reports_lag_max_seconds: float
    first_month: datetime = clock.EPOCH  # of the partitions there are; kept fresh by the process


def context(request: Request) -> Context:
    """The context of the process that serves `request`."""
    found = request.app.state.context
    assert isinstance(found, Context)  # noqa: S101 # set by the lifespan of every process that has these routes
    return found


async def place_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders."""
    at = context(request)
    key, content = await _key_and_content(request)
    # Whether it is allowed comes before whether it is valid.
    if PRICE not in claims.scopes and any(_member(content, name) is not None for name in ("adjustments", "user_id")):
        raise _scope_missing("`adjustments` and `user_id`", PRICE)
    body = validated(schemas.PlaceOrderBody, content)
    user_id = claims.user_id if body.user_id is None else UUID(body.user_id)
    placement = Placement(
        user_id=user_id,
        actor=f"user:{user_id}" if user_id == claims.user_id else f"staff:{claims.user_id}",
        currency=body.currency,
        lines=[
            Line(ids.from_text(item.product_id), item.product_id, item.quantity, item.unit_price) for item in body.items
        ],
        adjustments=[Adjustment(a.kind, a.line_no, a.label, a.amount) for a in body.adjustments or ()],
        agreed_prices=PRICE in claims.scopes,
        payment_method=body.payment_method,
        shipping_address_id=body.shipping_address_id,
    )
    outcome = await at.writes.finish(
        _followed(
            at,
            commands.place_order(
                at.database,
                at.turns,
                placement,
                Key(claims.subject, key, request_hash("POST", request.scope["path"], content)),
                now=at.now(),
                traceparent=request.state.traceparent,
                expires_after=at.expires_after,
            ),
        )
    )
    return _answer(outcome, status_code=201, headers={"Location": f"/v1/orders/{outcome.order.order_id}"})


async def get_order(request: Request, claims: Claims) -> Response:
    """GET /v1/orders/{order_id}."""
    at = context(request)
    query = parameters(schemas.OrderQuery, request)
    least = query.min_version or 0
    answer = await reads.get_order(
        at.database,
        at.cache,
        ids.canonical_in_path(request.path_params["order_id"]),
        None if READ_ANY in claims.scopes else claims.user_text,
        asked=lambda: (_order_key(request, at), _reader(claims)),
        min_version=least,
    )
    version = answer.entry.version
    if version < least:
        raise DomainError(
            "version_not_reached",
            409,
            "The order has not reached that version.",
            extra={"current_version": version},
        )
    return CachedResponse(answer, header(request, b"if-none-match"))


async def list_orders(request: Request, claims: Claims) -> Response:
    """GET /v1/orders."""
    at = context(request)
    if READ_ANY not in claims.scopes and request.query_params.get("user_id", str(claims.user_id)) != str(
        claims.user_id
    ):
        raise _scope_missing("Other people's orders", READ_ANY)
    query = parameters(schemas.ListQuery, request)
    user_id = claims.user_id if query.user_id is None else UUID(query.user_id)
    filters = hashlib.sha256(f"{user_id} {query.status} {query.created_from} {query.created_to}".encode()).digest()[:8]
    latest = at.now() + ids.CLOCK_SKEW  # no order is later, so no month after it is walked
    before = (
        _position(query.cursor, filters)
        if query.cursor is not None
        else Position(min(query.created_to or latest, latest), UUID(int=0))
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
    return JsonResponse(answers.render_orders(page.orders, cursor))


async def get_events(request: Request, claims: Claims) -> Response:
    """GET /v1/orders/{order_id}/events."""
    at = context(request)
    query = parameters(schemas.EventsQuery, request)
    version, events = await queries.get_events(
        at.database,
        _order_key(request, at),
        _reader(claims),
        after_version=query.after_version,
        limit=query.limit,
    )
    last = events[-1].version if events else version
    return JsonResponse(answers.render_events(events, str(last) if last < version else None))


async def cancel_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/cancel."""
    at = context(request)
    key, content = await _key_and_content(request, may_be_empty=True)
    staff = FULFIL in claims.scopes
    if not staff and _member(content, "reason") in (CancelReason.OUT_OF_STOCK.value, CancelReason.STAFF.value):
        raise _scope_missing("That reason", FULFIL)
    body = validated(schemas.CancelBody, content)
    reason = body.reason or (CancelReason.STAFF if staff else CancelReason.CUSTOMER).value
    return await _command(request, at, claims, Command.CANCEL, {"cancel_reason": reason}, key, content)


async def ship_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/ship."""
    at = context(request)
    key, content = await _key_and_content(request, may_be_empty=True)
    body = validated(schemas.ShipBody, content)
    details = {"tracking": body.tracking}
    return await _command(request, at, claims, Command.SHIP, details, key, content, _parts(body.items))


async def deliver_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/deliver."""
    at = context(request)
    key, content = await _key_and_content(request, may_be_empty=True)
    validated(schemas.DeliverBody, content)
    return await _command(request, at, claims, Command.DELIVER, {}, key, content)


async def return_order(request: Request, claims: Claims) -> Response:
    """POST /v1/orders/{order_id}/return."""
    at = context(request)
    key, content = await _key_and_content(request, may_be_empty=True)
    body = validated(schemas.ReturnBody, content)
    return await _command(request, at, claims, Command.RETURN, {}, key, content, _parts(body.items))


async def get_inventory(request: Request, _: Claims) -> Response:
    """GET /v1/inventory/{product_id}."""
    at = context(request)
    answer = await reads.get_stock(at.database, at.cache, _product_id(request))
    return CachedResponse(answer)


async def adjust_stock(request: Request, claims: Claims) -> Response:
    """POST /v1/inventory/{product_id}/adjustments."""
    at = context(request)
    key, content = await _key_and_content(request)
    body = validated(schemas.AdjustStockBody, content)
    product_id = _product_id(request)
    adjusted = await at.writes.finish(
        _followed(
            at,
            stock.adjust_stock(
                at.database,
                stock.Adjustment(product_id, body.delta, body.reason, f"staff:{claims.user_id}"),
                Key(claims.subject, key, request_hash("POST", request.scope["path"], content)),
                now=at.now(),
            ),
        )
    )
    headers = {"ETag": etag(adjusted.version), **({"Idempotency-Replayed": "true"} if adjusted.replayed else {})}
    content = answers.render_stock(
        ids.to_text(product_id), on_hand=adjusted.on_hand, reserved=adjusted.reserved, version=adjusted.version
    )
    return JsonResponse(content, status_code=201, headers=headers)


async def get_health(_: Request) -> Response:
    """GET /healthz: the process runs."""
    return JsonResponse({"status": "ok"})


async def get_readiness(request: Request) -> Response:
    """GET /readyz: requests can be served; what is not as it should be stands in `warnings`."""
    at = context(request)
    try:
        months = await queries.get_months(at.database)
        late = await summaries.get_warnings(at.database)
    except TransientError as error:
        raise unavailable("The database does not answer.") from error
    verdict = queries.judge_months(months, at.now(), months_ahead=at.months_ahead)
    if verdict.missing:
        raise unavailable(f"Partitions are missing: {', '.join(verdict.missing)}.", retry_after_seconds=10)
    return JsonResponse({"status": "ok", "warnings": [*verdict.warnings, *late, *at.degraded()]})


async def _key_and_content(request: Request, *, may_be_empty: bool = False) -> tuple[str, Any]:
    """The key, and what the body says. In the contract's order: 413, 415, 400 `key_missing`, `malformed_json`."""
    body = await read_body(request, may_be_empty=may_be_empty)
    key = key_from(request.headers.get(HEADER))
    return key, parsed_json(body) if body or not may_be_empty else {}


def _member(content: object, name: str) -> object:
    return content.get(name) if isinstance(content, dict) else None


def _parts(items: Sequence[schemas.PartBody] | None) -> list[Part] | None:
    return None if items is None else [Part(item.line_no, item.quantity) for item in items]


async def _command(
    request: Request,
    at: Context,
    claims: Claims,
    command: Command,
    details: dict[str, Any],
    key: str,
    content: object,
    parts: Sequence[Part] | None = None,
) -> Response:
    staff = FULFIL in claims.scopes
    outcome = await at.writes.finish(
        _followed(
            at,
            commands.command_order(
                at.database,
                _order_key(request, at),
                command,
                details,
                Caller(claims.user_id, f"{'staff' if staff else 'user'}:{claims.user_id}", any_owner=staff),
                Key(claims.subject, key, request_hash("POST", request.scope["path"], content)),
                parts=parts,
                if_match=if_match_version(request.headers.get("if-match")),
                now=at.now(),
                traceparent=request.state.traceparent,
            ),
        )
    )
    return _answer(outcome, status_code=200, headers={})


async def _followed(at: Context, write: Awaitable[Written]) -> Written:
    """What `write` gives, once cache and relay have been told of it. The client may be gone by then: they still are."""
    outcome = await write
    await at.after_commit(outcome.stale)
    return outcome


def _answer(outcome: Outcome, *, status_code: int, headers: dict[str, str]) -> Response:
    headers["ETag"] = etag(outcome.order.version)
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    return JsonResponse(answers.render_order(members_of(outcome.order)), status_code=status_code, headers=headers)


def _product_id(request: Request) -> UUID:
    try:
        return ids.from_text(request.path_params["product_id"])
    except ValueError:
        raise not_found() from None


def _scope_missing(what: str, scope: str) -> DomainError:
    return DomainError("scope_missing", 403, f"{what}: {scope} is needed.", extra={"required": [scope]})


def _order_key(request: Request, at: Context) -> OrderKey:
    return ids.order_key_in_path(request.path_params["order_id"], first=at.first_month, now=at.now())


def _reader(claims: Claims) -> Reader:
    return Reader(claims.user_id, any_owner=READ_ANY in claims.scopes)


def _cursor(position: Position, filters: bytes) -> str:
    """A position's time is the time in its id; it is tied to the filters (and the buyer) it was made for."""
    return cursors.sealed(UUID(int=position.order_id.int or clock.to_ms(position.created_at) << 80), filters)


def _position(cursor: str, filters: bytes) -> Position:
    order_id = cursors.opened(cursor, filters)
    try:
        return Position(clock.from_ms(order_id.int >> 80), order_id)
    except OverflowError:  # a forged one
        raise cursors.bad_cursor() from None
