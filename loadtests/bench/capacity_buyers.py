"""Buyers and staff in one, who do each operation on the API a number of times, a few at once."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import httpx
import orjson

from loadtests.bench.measure import VoidError
from services.cli.token import minted
from services.embedded.settings import StackSettings

T = TypeVar("T")
AT_ONCE: Final = 8
_SCOPE: Final = "orders:read orders:write orders:fulfil"


@dataclass
class Placed:
    """An order as it was answered last."""

    order_id: str
    version: int
    token: str


@dataclass
class Buyers:
    """Those of `users`; each order is of the next. `bytes_moved` counts bodies and headers, both ways."""

    client: httpx.AsyncClient
    settings: StackSettings
    users: Sequence[str]
    products: Sequence[str]
    bytes_moved: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)  # of reads: X-Cache
    _placed: int = 0
    _tokens: dict[str, str] = field(default_factory=dict)

    def token(self, number: int) -> str:
        """Of the buyer."""
        user = self.users[number % len(self.users)]
        if user not in self._tokens:
            self._tokens[user] = minted(self.settings, sub=user, scope=_SCOPE, hours=6)
        return self._tokens[user]

    def basket(self, number: int) -> list[dict[str, object]]:
        """One to three products, each as often as any other: what is measured is no queue for one."""
        picked = (self.products[(number + line) % len(self.products)] for line in range(1 + number % 3))
        return [{"product_id": product, "quantity": 1} for product in picked]

    async def place(self, count: int, *, payment_method: str | None = None) -> list[Placed]:
        """So many orders of one to three lines."""

        async def one(number: int) -> Placed:
            body: dict[str, Any] = {"currency": "USD", "items": self.basket(number)}
            if payment_method:
                body["payment_method"] = payment_method
            token = self.token(number)
            answer = orjson.loads(await self._post("/v1/orders", token, body, 201))
            return Placed(answer["order_id"], answer["version"], token)

        first, self._placed = self._placed, self._placed + count
        return await _each(range(first, first + count), one)

    async def command(self, orders: Sequence[Placed], name: str) -> None:
        """`ship`, `deliver` or `cancel` each; their versions are the new ones."""

        async def one(order: Placed) -> None:
            content = await self._post(f"/v1/orders/{order.order_id}/{name}", order.token, {}, 200, order.version)
            order.version = orjson.loads(content)["version"]

        await _each(orders, one)

    async def renew(self, orders: Sequence[Placed]) -> None:
        """They are known as they are now."""

        async def one(order: Placed) -> None:
            path, headers = f"/v1/orders/{order.order_id}", {"Authorization": f"Bearer {order.token}"}
            order.version = orjson.loads((await self._sent("GET", path, headers, None, 200)).content)["version"]

        await _each(orders, one)

    async def get(self, orders: Iterable[Placed], path: str = "/v1/orders/{}") -> None:
        """`path` with each order's id, of its buyer; `outcomes` has what the cache has said."""

        async def one(order: Placed) -> None:
            headers = {"Authorization": f"Bearer {order.token}"}
            answer = await self._sent("GET", path.format(order.order_id), headers, None, 200)
            self.outcomes[answer.headers.get("X-Cache", "")] += 1

        await _each(orders, one)

    async def _post(self, path: str, token: str, body: object, status: int, version: int | None = None) -> bytes:
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/json",
            "Idempotency-Key": secrets.token_hex(12),
            **({"If-Match": f'"{version}"'} if version else {}),
        }
        return (await self._sent("POST", path, headers, orjson.dumps(body), status)).content

    async def _sent(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, status: int
    ) -> httpx.Response:
        answer = await self.client.request(method, path, headers=headers, content=body)
        if answer.status_code != status:
            raise VoidError(f"{method} {path}: {answer.status_code} {answer.text}")
        of_headers = sum(
            len(name) + len(value) + 4 for name, value in (*answer.headers.raw, *answer.request.headers.raw)
        )
        self.bytes_moved += of_headers + len(answer.content) + len(body or b"")
        return answer


async def _each(things: Iterable[Any], done: Callable[[Any], Awaitable[T]]) -> list[T]:
    """AT_ONCE of them at a time, and the results in order."""
    queue = list(enumerate(things))
    results: list[Any] = [None] * len(queue)
    waiting = iter(queue)

    async def work() -> None:
        for place, thing in waiting:
            results[place] = await done(thing)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(work())
    return results
