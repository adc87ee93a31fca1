"""The limit: the same two operations as a bare Starlette handler, the same token check and the same SQL on asyncpg.

It parses the same body, binds the same values and answers what PostgreSQL gave: no validation, no fold, no metrics. And
the limit of a cache: the same token check, and constant bytes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from services.common import clock, ids
from services.common.auth import TokenVerifier
from services.common.db import SESSION
from services.orders.repository import ALL_EVENTS, GET_EVENTS, PLACE
from services.orders.settings import OrdersSettings

CONSTANT = b"x" * 760  # as many as an order of two lines has

settings = OrdersSettings()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """One pool, set as the order service sets its own."""

    async def keep(_: object) -> None:
        return None

    app.state.verifier = TokenVerifier(settings.issuer_url, settings.audience)
    app.state.pool = await asyncpg.create_pool(
        settings.postgres_url,
        min_size=1,
        max_size=settings.pool_size,
        max_cached_statement_lifetime=0,
        reset=keep,
        server_settings=dict(SESSION),
    )
    yield
    await app.state.pool.close()


async def place(request: Request) -> Response:
    """POST /v1/orders."""
    verifier = request.app.state.verifier
    header = request.headers["authorization"]
    claims = verifier.recall(header) or await verifier.verify(header)
    body = orjson.loads(await request.body())
    now = clock.now()
    key = ids.new_order_key(claims.user_id, now)
    items = body["items"]
    values = {
        "shard": key.shard,
        "slice": key.shard % 16,
        "order_id": key.order_id,
        "order_text": ids.to_text(key.order_id),
        "created_at": now,
        "created_text": clock.to_text(now),
        "event_id": ids.new_id(now),
        "user_id": claims.user_id,
        "user_text": str(claims.user_id),
        "subject": claims.subject,
        "key": request.headers["idempotency-key"],
        "request_hash": b"",
        "currency": body["currency"],
        "product_ids": [ids.from_text(item["product_id"]) for item in items],
        "product_texts": [item["product_id"] for item in items],
        "quantities": [item["quantity"] for item in items],
        "seen_prices": [None for _ in items],
        "agreed": False,
        "adjustments": "[]",
        "adjusted_amount": 0,
        "amount_max": 2**53 - 1,
        "status": "confirmed",
        "payment_status": "on_account",
        "payment_method": None,
        "shipping_address_id": None,
        "expires_at": None,
        "expires_text": None,
        "actor": f"user:{claims.user_id}",
        "traceparent": None,
    }
    async with request.app.state.pool.acquire() as connection:
        row = await connection.fetchrow(PLACE.sql, *PLACE.arguments(values))
    return Response(row["data"], status_code=201, media_type="application/json")


async def get(request: Request) -> Response:
    """GET /v1/orders/{order_id}."""
    verifier = request.app.state.verifier
    header = request.headers["authorization"]
    claims = verifier.recall(header) or await verifier.verify(header)
    key = ids.order_key(ids.from_text(request.path_params["order_id"]))
    values = {
        "order_id": key.order_id,
        "created_at": key.created_at,
        "shard": key.shard,
        "user_id": claims.user_id,
        "any_owner": False,
        "after_version": 0,
        "limit": ALL_EVENTS,
    }
    async with request.app.state.pool.acquire() as connection:
        rows = await connection.fetch(GET_EVENTS.sql, *GET_EVENTS.arguments(values))
    return Response(rows[0]["data"], media_type="application/json")


async def constant(request: Request) -> Response:
    """GET /v1/constant/{order_id}: the limit of what is answered without asking anybody."""
    verifier = request.app.state.verifier
    header = request.headers["authorization"]
    verifier.recall(header) or await verifier.verify(header)
    return Response(CONSTANT, media_type="application/json")


async def ready(_: Request) -> Response:
    """GET /readyz."""
    return Response()


app = Starlette(
    routes=[
        Route("/v1/orders", place, methods=["POST"]),
        Route("/v1/orders/{order_id}", get),
        Route("/v1/constant/{order_id}", constant),
        Route("/readyz", ready),
    ],
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
