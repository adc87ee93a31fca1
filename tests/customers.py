"""customers-api in this process to test with, tokens, and the usual requests."""

import secrets
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from services.common import clock
from services.customers import api
from services.customers.settings import CustomersSettings
from services.embedded.keys import mint

ADA = {"name": "Ada Lovelace", "email": "ada@example.com", "phone": "+442071838750"}
SQUARE: dict[str, Any] = {
    "name": "Ada Lovelace",
    "lines": ["12 St James's Square", "2nd floor"],
    "city": "London",
    "region": None,
    "postal_code": "SW1Y 4JH",
    "country": "GB",
    "phone": None,
}
ADDRESSES = "/v1/me/addresses"


@dataclass
class Customers:
    """Every request goes through the whole application, as `customer` unless `sub` says otherwise."""

    client: httpx.AsyncClient
    settings: CustomersSettings
    issuer_home: Path
    owner: "asyncpg.Connection[asyncpg.Record]"
    customer: uuid.UUID = field(default_factory=uuid.uuid4)

    def auth(self, scope: str = "profile", *, sub: uuid.UUID | str | None = None) -> dict[str, str]:
        """The Authorization header of a token."""
        token = mint(
            self.issuer_home,
            issuer=self.settings.issuer_url,
            audience=self.settings.audience,
            sub=str(sub or self.customer),
            scope=scope,
        )
        return {"Authorization": f"Bearer {token}"}

    async def send(
        self,
        method: str,
        path: str,
        *,
        sub: uuid.UUID | None = None,
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """A request of the customer's, or of `sub`'s."""
        return await self.client.request(method, path, headers={**self.auth(sub=sub), **(headers or {})}, **more)

    async def get(self, path: str = "/v1/me", *, sub: uuid.UUID | None = None) -> httpx.Response:
        """GET, the profile unless it is another path."""
        return await self.send("GET", path, sub=sub)

    async def patch(self, version: int, *, sub: uuid.UUID | None = None, **members: Any) -> httpx.Response:
        """PATCH the profile that was seen at that version."""
        return await self.send("PATCH", "/v1/me", sub=sub, json=members, headers={"If-Match": f'"{version}"'})

    async def started(self, *, sub: uuid.UUID | None = None) -> dict[str, Any]:
        """The profile of somebody who has just become a customer."""
        response = await self.patch(1, sub=sub, name=ADA["name"], email=ADA["email"], phone=ADA["phone"])
        assert response.status_code == 200, response.text
        profile: dict[str, Any] = response.json()
        return profile

    async def erase(self, *, sub: uuid.UUID | None = None) -> httpx.Response:
        """DELETE the profile and all else."""
        return await self.send("DELETE", "/v1/me", sub=sub)

    async def add(self, *, key: str | None = None, sub: uuid.UUID | None = None, **members: Any) -> httpx.Response:
        """POST the address with these members."""
        headers = {"Idempotency-Key": key or secrets.token_hex(8)}
        return await self.send("POST", ADDRESSES, sub=sub, json=SQUARE | members, headers=headers)

    async def added(self, *, sub: uuid.UUID | None = None, **members: Any) -> dict[str, Any]:
        """The address that `add` makes."""
        response = await self.add(sub=sub, **members)
        assert response.status_code == 201, response.text
        address: dict[str, Any] = response.json()
        return address

    async def replace(self, address: dict[str, Any], *, sub: uuid.UUID | None = None, **members: Any) -> httpx.Response:
        """PUT in the place of the address one with these members."""
        return await self.send("PUT", path_of(address), sub=sub, json=SQUARE | members)

    async def retire(self, address: dict[str, Any], *, sub: uuid.UUID | None = None) -> httpx.Response:
        """DELETE the address."""
        return await self.send("DELETE", path_of(address), sub=sub)

    async def addresses(self) -> list[dict[str, Any]]:
        """Those in use."""
        found: list[dict[str, Any]] = (await self.get(ADDRESSES)).json()["data"]
        return found


def path_of(address: dict[str, Any]) -> str:
    """Where the address is."""
    return f"{ADDRESSES}/{address['address_id']}"


@asynccontextmanager
async def opened_customers(
    settings: CustomersSettings,
    issuer_home: Path,
    owner: "asyncpg.Connection[asyncpg.Record]",
    now: clock.Clock = clock.now,
) -> AsyncIterator[Customers]:
    """customers-api with these settings and this clock, from its start to its end."""
    observed = api.create_app(settings, now)
    app = observed.fastapi
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app=observed, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://customers") as client:
            yield Customers(client, settings, issuer_home, owner)
