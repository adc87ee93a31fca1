"""The limit: the same operations as bare Starlette handlers, the same token check and the same SQL on asyncpg.

They parse the same body, bind the same values and answer what PostgreSQL gave: no validation, no fold, no metrics. And
the limit of a cache: the same token check, and constant bytes.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID

import asyncpg
import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from loadtests.bench import placing
from services.common import clock, ids
from services.common.auth import Claims, TokenVerifier
from services.common.db import SESSION
from services.common.schemas import PAGE_DEFAULT
from services.orders.place import PLACE
from services.orders.queries import LIST_ORDERS, LIST_ORDERS_BY_STATUS
from services.orders.repository import ALL_EVENTS, GET_EVENTS
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


async def claims_of(request: Request) -> Claims:
    """Whose token it is."""
    verifier: TokenVerifier = request.app.state.verifier
    header = request.headers["authorization"]
    return verifier.recall(header) or await verifier.verify(header)


async def place(request: Request) -> Response:
    """POST /v1/orders."""
    claims = await claims_of(request)
    body = orjson.loads(await request.body())
    now = clock.now()
    values = placing.arguments(
        ids.new_order_key(claims.user_id, now),
        user_id=claims.user_id,
        subject=claims.subject,
        key=request.headers["idempotency-key"],
        currency=body["currency"],
        items=body["items"],
        now=now,
    )
    async with request.app.state.pool.acquire() as connection:
        row = await connection.fetchrow(PLACE.sql, *values)
    return Response(row["data"], status_code=201, media_type="application/json")


async def get(request: Request) -> Response:
    """GET /v1/orders/{order_id}."""
    claims = await claims_of(request)
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


async def list_orders(request: Request) -> Response:
    """GET /v1/orders, the first page."""
    claims = await claims_of(request)
    status = request.query_params.get("status")
    now = clock.now()
    statement = LIST_ORDERS if status is None else LIST_ORDERS_BY_STATUS
    values = {
        "user_id": claims.user_id,
        "status": status,
        "from_at": now - timedelta(days=365),
        "before_at": now,
        "before_id": UUID(int=0),
        "limit": PAGE_DEFAULT,
    }
    async with request.app.state.pool.acquire() as connection:
        rows = await connection.fetch(statement.sql, *statement.arguments(values))
    return Response(b"[" + b",".join(row["data"].encode() for row in rows) + b"]", media_type="application/json")


async def constant(request: Request) -> Response:
    """GET /v1/constant/{order_id}: the limit of what is answered without asking anybody."""
    await claims_of(request)
    return Response(CONSTANT, media_type="application/json")


async def ready(_: Request) -> Response:
    """GET /readyz."""
    return Response()


app = Starlette(
    routes=[
        Route("/v1/orders", place, methods=["POST"]),
        Route("/v1/orders", list_orders),
        Route("/v1/orders/{order_id}", get),
        Route("/v1/constant/{order_id}", constant),
        Route("/readyz", ready),
    ],
    lifespan=lifespan,
)

if __name__ == "__main__":
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
