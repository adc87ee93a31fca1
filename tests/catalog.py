"""A catalogue to test with: catalog-api in this process, tokens, and the usual requests."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson

from services.catalog import api
from services.catalog.settings import CatalogSettings
from services.common import clock, ids
from services.embedded.keys import mint

WRITE = "catalog:write"
TEAPOT = {"name": "Teapot", "description": "One litre.", "price": 1999, "currency": "USD", "active": True}


def new_product_id() -> str:
    """A ULID that nobody has."""
    return ids.to_text(ids.new_id(clock.now()))


@dataclass
class Catalogue:
    """Every request goes through the whole application; `keeper` is who writes."""

    client: httpx.AsyncClient
    settings: CatalogSettings
    issuer_home: Path
    owner: "asyncpg.Connection[asyncpg.Record]"
    keeper: uuid.UUID = field(default_factory=uuid.uuid4)

    def auth(self, scope: str = WRITE) -> dict[str, str]:
        """The Authorization header of a token of the keeper's."""
        token = mint(
            self.issuer_home,
            issuer=self.settings.issuer_url,
            audience=self.settings.audience,
            sub=str(self.keeper),
            scope=scope,
        )
        return {"Authorization": f"Bearer {token}"}

    async def put(
        self, product_id: str, body: Any = None, *, headers: dict[str, str] | None = None, **members: Any
    ) -> httpx.Response:
        """PUT the teapot with these members, or this body."""
        return await self.client.put(
            f"/v1/products/{product_id}",
            json=TEAPOT | members if body is None else body,
            headers={**self.auth(), **(headers or {})},
        )

    async def change(self, product_id: str, version: int, **members: Any) -> httpx.Response:
        """PUT with If-Match."""
        return await self.put(product_id, headers={"If-Match": f'"{version}"'}, **members)

    async def created(self, **members: Any) -> str:
        """The id of a new product."""
        product_id = new_product_id()
        response = await self.put(product_id, **members)
        assert response.status_code == 201, response.text
        return product_id

    async def get(self, path: str, *, headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:
        """GET as anybody."""
        return await self.client.get(path, params=params, headers=headers)

    async def events(self, product_id: str) -> list[dict[str, Any]]:
        """The rows of the outbox of a product, in their order."""
        rows = await self.owner.fetch(
            "SELECT *, data::text AS data FROM catalog.outbox WHERE aggregate_id = $1 ORDER BY slice, position",
            ids.from_text(product_id),
        )
        return [{**dict(row), "data": orjson.loads(row["data"])} for row in rows]


@asynccontextmanager
async def opened_catalogue(
    settings: CatalogSettings,
    issuer_home: Path,
    owner: "asyncpg.Connection[asyncpg.Record]",
    now: clock.Clock = clock.now,
) -> AsyncIterator[Catalogue]:
    """catalog-api with these settings and this clock, from its start to its end."""
    observed = api.create_app(settings, now)
    app = observed.fastapi
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=observed, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://catalog") as client:
            yield Catalogue(client, settings, issuer_home, owner)
