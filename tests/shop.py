"""A shop to test with: orders-api in this process, tokens, products, and the usual requests."""

import secrets
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from services.common import clock, ids
from services.embedded.keys import mint
from services.orders import api
from services.orders.settings import OrdersSettings

AUDIENCE = "order-backend"


async def offer(
    owner: "asyncpg.Connection[asyncpg.Record]",
    product_id: uuid.UUID,
    *,
    price: int = 1999,
    currency: str = "USD",
    active: bool = True,
    name: str = "Thing",
) -> None:
    """A product in the catalogue, and its copy."""
    await owner.execute(
        "WITH product AS (INSERT INTO catalog.products"
        " (product_id, name, description, price, currency, active, version, updated_at)"
        " VALUES ($1, $2, '', $3, $4, $5, 1, now()) RETURNING *)"
        " INSERT INTO orders.products (product_id, name, price, currency, active, version)"
        " SELECT product_id, name, price, currency, active, version FROM product",
        *(product_id, name, price, currency, active),
    )


@dataclass
class Shop:
    """One buyer (`buyer`), staff, and products; every request goes through the whole application."""

    client: httpx.AsyncClient
    settings: OrdersSettings
    issuer_home: Path
    owner: "asyncpg.Connection[asyncpg.Record]"
    buyer: uuid.UUID = field(default_factory=uuid.uuid4)

    def token(self, scope: str = "orders:read orders:write", *, sub: uuid.UUID | str | None = None) -> str:
        """An access token, of the buyer unless `sub` says otherwise."""
        return mint(
            self.issuer_home,
            issuer=self.settings.issuer_url,
            audience=self.settings.audience,
            sub=str(sub or self.buyer),
            scope=scope,
        )

    def auth(self, scope: str = "orders:read orders:write", *, sub: uuid.UUID | str | None = None) -> dict[str, str]:
        """The Authorization header of `token`."""
        return {"Authorization": f"Bearer {self.token(scope, sub=sub)}"}

    async def product(
        self,
        *,
        price: int = 1999,
        stock: int | None = 100,
        currency: str = "USD",
        active: bool = True,
        name: str = "Thing",
    ) -> str:
        """The ULID of a new product with that stock (none at all for None)."""
        product_id = ids.new_id(clock.now())
        await offer(self.owner, product_id, price=price, currency=currency, active=active, name=name)
        if stock is not None:
            await self.owner.execute(
                "INSERT INTO orders.inventory (product_id, on_hand, reserved, version) VALUES ($1, $2, 0, 1)",
                *(product_id, stock),
            )
            await self.owner.execute(
                "INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved,"
                " subject, key, request_hash, created_at)"
                " VALUES ($1, 1, $2, 'opening', 'process:test', $2, 0, 'test', 'opening', '', now())",
                *(product_id, stock),
            )
        return ids.to_text(product_id)

    async def change_product(self, product: str, **changed: Any) -> None:
        """It changes in the catalogue, and its copy as the projector changes it: with the version beside its stock."""
        async with self.owner.transaction():
            version = await self.owner.fetchval(
                "UPDATE orders.inventory i SET product_version = p.version + 1 FROM orders.products p"
                " WHERE i.product_id = $1 AND p.product_id = $1 RETURNING i.product_version",
                ids.from_text(product),
            )
            for column, value in {**changed, "version": version}.items():
                for schema in ("catalog", "orders"):
                    await self.owner.execute(
                        f"UPDATE {schema}.products SET {column} = $2 WHERE product_id = $1",  # noqa: S608 # of ours
                        *(ids.from_text(product), value),
                    )

    async def place(
        self,
        *lines: tuple[str, int],
        key: str | None = None,
        headers: dict[str, str] | None = None,
        **body: Any,
    ) -> httpx.Response:
        """POST /v1/orders for (product, quantity) lines."""
        return await self.client.post(
            "/v1/orders",
            json={"currency": "USD", "items": [{"product_id": p, "quantity": q} for p, q in lines], **body},
            headers={**self.auth(), "Idempotency-Key": key or secrets.token_hex(8), **(headers or {})},
        )

    async def placed(self, *lines: tuple[str, int], **body: Any) -> dict[str, Any]:
        """The order that `place` makes; a new product of quantity 1 when no line is given."""
        response = await self.place(*(lines or [(await self.product(), 1)]), **body)
        assert response.status_code == 201, response.text
        order: dict[str, Any] = response.json()
        return order

    async def command(
        self,
        order: dict[str, Any],
        name: str,
        body: dict[str, Any] | None = None,
        *,
        scope: str = "orders:fulfil",
        sub: uuid.UUID | str | None = None,
        key: str | None = None,
        if_match: str | None = None,
    ) -> httpx.Response:
        """POST /v1/orders/{id}/{name} at the order's version."""
        return await self.client.post(
            f"/v1/orders/{order['order_id']}/{name}",
            json=body or {},
            headers={
                **self.auth(scope, sub=sub),
                "Idempotency-Key": key or secrets.token_hex(8),
                "If-Match": if_match or f'"{order["version"]}"',
            },
        )

    async def get(self, path: str, *, scope: str = "orders:read", **params: Any) -> httpx.Response:
        """GET as the buyer."""
        return await self.client.get(path, params=params, headers=self.auth(scope))

    async def adjust(
        self,
        product: str,
        delta: Any = 1,
        reason: Any = "counted",
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        sub: uuid.UUID | str | None = None,
    ) -> httpx.Response:
        """POST /v1/inventory/{product}/adjustments."""
        return await self.client.post(
            f"/v1/inventory/{product}/adjustments",
            json={"delta": delta, "reason": reason},
            headers={
                **self.auth("inventory:write", sub=sub),
                "Idempotency-Key": key or secrets.token_hex(8),
                **(headers or {}),
            },
        )

    async def stock(self, product: str) -> tuple[int, int]:
        """(on_hand, reserved) as the API tells them."""
        content = (await self.get(f"/v1/inventory/{product}")).json()
        return content["on_hand"], content["reserved"]


@asynccontextmanager
async def opened_shop(
    settings: OrdersSettings,
    issuer_home: Path,
    owner: "asyncpg.Connection[asyncpg.Record]",
    now: clock.Clock = clock.now,
) -> AsyncIterator[Shop]:
    """orders-api with these settings and this clock, from its start to its end."""
    observed = api.create_app(settings, now)
    app = observed.fastapi
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=observed, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://orders") as client:
            yield Shop(client, settings, issuer_home, owner)


def codes(responses: Sequence[httpx.Response]) -> list[str]:
    """Of refusals, their codes; of others, their status."""
    return [r.json().get("code", str(r.status_code)) if r.content else str(r.status_code) for r in responses]
