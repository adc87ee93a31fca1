"""Buyers who do not give up: each keeps the key of what they asked for until it is answered."""

import asyncio
import random
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from services.embedded.keys import mint
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE

PATIENCE_SECONDS = 60.0
PASSING = {409: {"request_in_progress"}, 503: {"unavailable"}}  # refusals that ask for the same request again
OUTDATED = {409: {"transition_not_allowed"}, 412: {"version_mismatch"}}  # the order has moved on since it was seen


class OutdatedError(Exception):
    """Somebody else has changed the order; nothing of the command is kept."""


@dataclass
class Asked:
    """One request with its key: what became of its attempts, and its answer, as bytes, once there was one."""

    key: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    attempts: int = 0
    sent: bool = False
    answer: bytes | None = None
    replayed: bool = False
    answered_at: float = 0.0

    @property
    def lines(self) -> dict[str, int]:
        """Quantities by product."""
        wanted: Counter[str] = Counter()
        for item in self.body.get("items", []):
            wanted[item["product_id"]] += item["quantity"]
        return dict(wanted)


@dataclass(frozen=True)
class Refusal:
    """An attempt that was told to come again, or met nobody (`status` 0), after so many seconds."""

    status: int
    retry_after: str | None
    seconds: float


@dataclass
class Buyers:
    """They share a client and remember everything they asked for. `seen` counts what their attempts met."""

    issuer_home: Path
    issuer_url: str
    client: httpx.AsyncClient
    chance: random.Random
    products: Sequence[str] = ()
    asked: list[Asked] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    refusals: list[Refusal] = field(default_factory=list)

    def token(self, scope: str = "orders:read orders:write", sub: str | None = None) -> str:
        """An access token."""
        return mint(
            self.issuer_home, issuer=self.issuer_url, audience=AUDIENCE, sub=sub or str(uuid.uuid4()), scope=scope
        )

    def placement(
        self, *, lines: int = 3, product: str | None = None, token: str | None = None, method: str | None = None
    ) -> Asked:
        """An order that is about to be placed, of products taken by chance; on account without a payment method."""
        chosen = [product] if product else self.chance.sample(list(self.products), self.chance.randint(1, lines))
        items = [{"product_id": one, "quantity": self.chance.randint(1, 3)} for one in chosen]
        headers = {"Authorization": f"Bearer {token or self.token()}"}
        body = {"currency": "USD", "items": items, **({"payment_method": method} if method else {})}
        return self._remembered(Asked(secrets.token_hex(12), "/v1/orders", body, headers))

    def command(self, order: dict[str, Any], name: str, token: str, body: dict[str, Any] | None = None) -> Asked:
        """A command on `order` at its version, about to be given."""
        headers = {"Authorization": f"Bearer {token}", "If-Match": f'"{order["version"]}"'}
        path = f"/v1/orders/{order['order_id']}/{name}"
        return self._remembered(Asked(secrets.token_hex(12), path, body or {}, headers))

    def _remembered(self, asked: Asked) -> Asked:
        asked.headers["Idempotency-Key"] = asked.key
        self.asked.append(asked)
        return asked

    async def attempt(self, asked: Asked, url: str) -> bool:
        """One attempt. Whether it was answered for good. OutdatedError; any other lasting refusal fails the test."""
        asked.attempts += 1
        asked.sent = False

        async def trace(event: str, _: object) -> None:
            asked.sent = asked.sent or event == "http11.send_request_body.complete"

        asked_at = time.monotonic()
        try:
            response = await self.client.post(
                url + asked.path, json=asked.body, headers=asked.headers, extensions={"trace": trace}
            )
        except httpx.TransportError as error:
            self.seen[type(error).__name__] += 1
            self.refusals.append(Refusal(0, None, time.monotonic() - asked_at))
            return False
        self.seen[str(response.status_code)] += 1
        if response.status_code not in {200, 201}:
            code = response.json().get("code")
            if code in OUTDATED.get(response.status_code, ()):
                self.asked.remove(asked)
                raise OutdatedError(code)
            assert code in PASSING.get(response.status_code, ()), f"{response.status_code}: {response.text}"
            told = response.headers.get("retry-after")
            self.refusals.append(Refusal(response.status_code, told, time.monotonic() - asked_at))
            return False
        replayed = response.headers.get("idempotency-replayed") == "true"
        if asked.answer is None:
            asked.answer, asked.replayed, asked.answered_at = response.content, replayed, time.monotonic()
        else:
            # Of two attempts at once the replay may be heard before what it repeats.
            assert replayed or asked.replayed, "a second answer that is no replay"
            assert response.content == asked.answer, "a replay differs from the first answer"
            asked.replayed = asked.replayed and replayed
        return True

    async def insist(self, asked: Asked, url: Callable[[], str]) -> dict[str, Any]:
        """Attempts until it is answered for good; gives the answer's order. OutdatedError."""

        async def answered() -> bool:
            return await self.attempt(asked, url())

        await eventually(answered, f"an answer to {asked.path} {asked.key}", seconds=PATIENCE_SECONDS, every=0.03)
        assert asked.answer is not None
        order: dict[str, Any] = httpx.Response(200, content=asked.answer).json()
        return order

    async def order(self, order_id: str, token: str, url: Callable[[], str]) -> dict[str, Any]:
        """The order as it stands, asked for until there is an answer."""

        async def read() -> dict[str, Any] | None:
            try:
                response = await self.client.get(
                    f"{url()}/v1/orders/{order_id}", headers={"Authorization": f"Bearer {token}"}
                )
            except httpx.TransportError as error:
                self.seen[type(error).__name__] += 1
                return None
            self.seen[str(response.status_code)] += 1
            assert response.status_code in {200, 503}, response.text
            return response.json() if response.status_code == 200 else None

        found = await eventually(read, f"order {order_id}", seconds=PATIENCE_SECONDS, every=0.03)
        assert found is not None
        return found

    async def replay_all(self, url: str) -> int:
        """Every request has been sent once more and was answered with the same bytes; gives how many."""
        width = asyncio.Semaphore(8)

        async def once(asked: Asked) -> None:
            async with width:
                assert await self.attempt(asked, url), f"no replay of {asked.key}"

        await asyncio.gather(*(once(asked) for asked in self.asked))
        return len(self.asked)
