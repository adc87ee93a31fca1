"""The same API written the usual way: FastAPI dependencies, a session of the ORM, `response_model`; on the same tables.

It keeps what ours promises of an order that is taken: key, stock, order, lines, event, outbox and what caches have to
hear are one transaction. It has no cache, no retries, no metrics, and refuses in fewer words.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

import asyncpg
import sqlalchemy as sa
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, relationship, selectinload

from services.common import clock, ids
from services.common.auth import Claims, TokenVerifier
from services.common.db import SESSION
from services.common.schemas import PAGE_DEFAULT
from services.contracts.orders import EventType, OrderStatus
from services.orders import tables
from services.orders.domain import ALLOWED_ACTIONS
from services.orders.schemas import PlaceOrderBody
from services.orders.settings import OrdersSettings

settings = OrdersSettings()


class Base(DeclarativeBase):
    """Of the rows, which are those of the order service's tables."""


class ItemRow(Base):
    """A line."""

    __table__ = tables.order_items


class OrderRow(Base):
    """An order with its lines."""

    __table__ = tables.orders
    items: Mapped[list[ItemRow]] = relationship(
        primaryjoin=sa.and_(
            *(
                tables.orders.c[c] == sa.orm.foreign(tables.order_items.c[c])
                for c in ("order_id", "created_at", "shard")
            )
        ),
        order_by=tables.order_items.c.line_no,
    )

    @property
    def allowed_actions(self) -> tuple[str, ...]:
        """What its status allows."""
        return tuple(ALLOWED_ACTIONS[OrderStatus(self.status)])


class EventRow(Base):
    """One change of an order."""

    __table__ = tables.order_events


class KeyRow(Base):
    """A request that changed something."""

    __table__ = tables.idempotency_keys


class ProductRow(Base):
    """What is for sale."""

    __table__ = tables.products


class StockRow(Base):
    """What there is of it."""

    __table__ = tables.inventory


Ulid = Annotated[str, BeforeValidator(lambda value: ids.to_text(value) if isinstance(value, UUID) else value)]
Uuid = Annotated[str, BeforeValidator(str)]
Time = Annotated[str, BeforeValidator(lambda value: clock.to_text(value) if isinstance(value, datetime) else value)]


class ItemOut(BaseModel):
    """A line, as it is answered."""

    model_config = ConfigDict(from_attributes=True)

    line_no: int
    product_id: Ulid
    name: str
    quantity: int
    unit_price: int
    line_total: int
    shipped_quantity: int
    returned_quantity: int


class OrderOut(BaseModel):
    """An order, as it is answered."""

    model_config = ConfigDict(from_attributes=True)

    order_id: Ulid
    user_id: Uuid
    status: str
    payment_status: str
    currency: str
    total_amount: int
    captured_amount: int
    refunded_amount: int
    item_count: int
    version: int
    created_at: Time
    updated_at: Time
    items: list[ItemOut]
    adjustments: list[dict[str, Any]]
    expires_at: Time | None
    payment_method: str | None
    shipping_address_id: str | None
    tracking: str | None
    cancel_reason: str | None
    allowed_actions: list[str]


class PageOut(BaseModel):
    """Orders, newest first."""

    data: list[OrderOut]
    next_cursor: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """As many connections as the order service has, with its planner's settings."""

    async def connect() -> Any:
        return await asyncpg.connect(settings.postgres_url, server_settings=dict(SESSION))

    engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connect, pool_size=settings.pool_size, max_overflow=0
    )
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.verifier = TokenVerifier(settings.issuer_url, settings.audience)
    yield
    await engine.dispose()
    await app.state.verifier.aclose()


app = FastAPI(lifespan=lifespan)


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    """One a request."""
    async with request.app.state.sessions() as session:
        yield session


async def claims_of(request: Request) -> Claims:
    """Whose token it is."""
    verifier: TokenVerifier = request.app.state.verifier
    header = request.headers.get("authorization")
    return verifier.recall(header) or await verifier.verify(header)


Session = Annotated[AsyncSession, Depends(session_of)]
Caller = Annotated[Claims, Depends(claims_of)]


@app.post("/v1/orders", status_code=201, response_model=OrderOut)
async def place(
    body: PlaceOrderBody, session: Session, claims: Caller, idempotency_key: Annotated[str, Header()]
) -> OrderRow:
    """Take an order."""
    now = clock.now()
    key = ids.new_order_key(claims.user_id, now)
    async with session.begin():
        known = await session.get(KeyRow, (key.shard, claims.subject, idempotency_key))
        if known is not None:
            return await _order(session, ids.order_key(known.resource), claims.user_id)
        session.add(
            KeyRow(
                shard=key.shard,
                subject=claims.subject,
                key=idempotency_key,
                request_hash=b"",
                resource=key.order_id,
                version=1,
                created_at=now,
            )
        )
        order = await _reserved(session, body, OrderRow(**key._asdict(), user_id=claims.user_id))
        session.add(order)
        await session.flush()
        await _told(session, order, OrderOut.model_validate(order), now)
    return order


async def _reserved(session: AsyncSession, body: PlaceOrderBody, order: OrderRow) -> OrderRow:
    """The order with its lines, once the stock that they want is its own."""
    wanted = [ids.from_text(item.product_id) for item in body.items]
    stocks = await session.scalars(
        sa.select(StockRow).where(StockRow.product_id.in_(wanted)).order_by(StockRow.product_id).with_for_update()
    )
    stock = {row.product_id: row for row in stocks}
    found = await session.scalars(sa.select(ProductRow).where(ProductRow.product_id.in_(wanted)))
    products = {row.product_id: row for row in found}
    for number, (product_id, item) in enumerate(zip(wanted, body.items, strict=True), 1):
        product, row = products.get(product_id), stock.get(product_id)
        if product is None or not product.active or product.currency != body.currency:
            raise HTTPException(409, "product_unknown, product_inactive or currency_mismatch")
        if row is None or row.on_hand - row.reserved < item.quantity:
            raise HTTPException(409, "out_of_stock")
        row.reserved += item.quantity
        row.version += 1
        order.items.append(
            ItemRow(
                line_no=number,
                product_id=product_id,
                name=product.name,
                quantity=item.quantity,
                unit_price=product.price,
                line_total=product.price * item.quantity,
                shipped_quantity=0,
                returned_quantity=0,
            )
        )
    order.status, order.payment_status, order.currency = "confirmed", "on_account", body.currency
    order.total_amount = sum(item.line_total for item in order.items)
    order.captured_amount = order.refunded_amount = 0
    order.item_count, order.adjustments = len(order.items), []
    order.version, order.updated_at = 1, order.created_at
    return order


async def _told(session: AsyncSession, order: OrderRow, shown: OrderOut, now: datetime) -> None:
    """The event, its way to Kafka, and what caches have to hear."""
    content = shown.model_dump(exclude={"allowed_actions"})
    header = {name: content[name] for name in ("status", "payment_status", "currency", "total_amount", "user_id")}
    place = {"shard": order.shard, "slice": order.shard % ids.SLICES}
    session.add(
        EventRow(
            order_id=order.order_id,
            created_at=order.created_at,
            shard=order.shard,
            version=1,
            event_id=ids.new_id(now),
            type=EventType.PLACED.value,
            data={"change": {**content, "agreed_prices": False}, "after": header},
            actor=f"user:{order.user_id}",
            occurred_at=now,
        )
    )
    written = {"order_id": order.order_id, "created_at": order.created_at, "version": 1}
    # inline: the role may not read these tables, so nothing can be returned from them
    await session.execute(sa.insert(tables.outbox).values(**place, **written).inline())
    touched = {item.product_id for item in order.items}
    versions = await session.execute(
        sa.select(StockRow.product_id, StockRow.version).where(StockRow.product_id.in_(touched))
    )
    keys = {"orders:inventory": {str(product_id): version for product_id, version in versions}}
    await session.execute(sa.insert(tables.invalidations).values(**place, keys=keys).inline())


@app.get("/v1/orders/{order_id}", response_model=OrderOut)
async def get(order_id: str, session: Session, claims: Caller) -> OrderRow:
    """Show one's own order."""
    return await _order(session, ids.order_key(ids.from_text(order_id)), claims.user_id)


async def _order(session: AsyncSession, key: ids.OrderKey, user_id: UUID) -> OrderRow:
    """By all three columns, which its id has: by the id alone every month would be searched."""
    found = await session.scalar(
        sa.select(OrderRow).filter_by(**key._asdict(), user_id=user_id).options(selectinload(OrderRow.items))
    )
    if found is None:
        raise HTTPException(404)
    return found


@app.get("/v1/orders", response_model=PageOut)
async def list_orders(session: Session, claims: Caller, status: OrderStatus | None = None) -> dict[str, Any]:
    """List one's own orders of a year, the newest first; the first page."""
    now = clock.now()
    orders = sa.select(OrderRow).where(
        OrderRow.user_id == claims.user_id, OrderRow.created_at <= now, OrderRow.created_at >= now - timedelta(days=365)
    )
    if status is not None:
        orders = orders.where(OrderRow.status == status.value)
    orders = orders.order_by(OrderRow.created_at.desc(), OrderRow.order_id.desc()).limit(PAGE_DEFAULT)
    return {"data": (await session.scalars(orders.options(selectinload(OrderRow.items)))).all()}


@app.get("/readyz")
async def ready() -> None:
    """It serves."""


if __name__ == "__main__":
    uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
