"""The running stack that is traded with: where its parts are, tokens for it, and requests that survive a bad moment."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Self, TypeVar

import httpx
import orjson
import stamina

from loadtests.trade.trade import TradeError, user_id
from services.cli.token import minted
from services.embedded.settings import StackSettings

T = TypeVar("T")

TOKEN_HOURS: Final = 24 * 7  # a year at a speed-up of 60 takes six days
ATTEMPTS: Final = 20
WITHIN_SECONDS: Final = 60.0  # a part that died is back within seconds; what takes longer is worth reporting
REQUEST_TIMEOUT_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.05


class UnansweredError(TradeError):
    """Nobody answered, or only to come again later."""

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Target:
    """`catalog` and `postgres` are None where the stack has none, or lets nobody look into it."""

    settings: StackSettings
    orders: str
    catalog: str | None
    postgres: str | None
    kafka: str

    @classmethod
    def of(cls, settings: StackSettings) -> Self:
        """The stack that runs in `settings.home`. TradeError when none does."""
        file = settings.home / "endpoints.json"
        try:
            endpoints: dict[str, str] = json.loads(file.read_text())
        except FileNotFoundError:
            raise TradeError(f"There is no {file}: start the stack with `make up`, or set ORDERS_HOME.") from None
        return cls(
            settings, endpoints["orders"], endpoints.get("catalog"), endpoints.get("postgres"), endpoints["kafka"]
        )

    def bearer(self, data_set: str, scope: str) -> dict[str, str]:
        """Headers of the data set's sales desk with these scopes: always the same subject, so that its keys hold."""
        sub = uuid.UUID(user_id(data_set, "sales desk"))
        token = minted(self.settings, sub=str(sub), scope=scope, hours=TOKEN_HOURS)
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def http(url: str, headers: dict[str, str], concurrency: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with as many connections as requests at once."""
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, limits=limits, timeout=REQUEST_TIMEOUT_SECONDS
    ) as client:
        yield client


async def ask(
    client: httpx.AsyncClient,
    method: str,
    path: str,
    body: object = None,
    *,
    key: str | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """The answer, whatever it says. Asked again, with the same key, when nobody answered or it says to: see `_again`.

    Safe for reads, for PUT, and for a POST with its key. `extensions["attempts"]` counts how often it was asked.
    UnansweredError when the attempts or the time are used up.
    """
    sent = dict(headers or {})
    if body is not None:
        sent["Content-Type"] = "application/json"
    if key is not None:
        sent["Idempotency-Key"] = key
    content = None if body is None else orjson.dumps(body)
    async for attempt in stamina.retry_context(
        on=_backoff, attempts=ATTEMPTS, timeout=WITHIN_SECONDS, wait_initial=0.05, wait_max=2.0, wait_jitter=0.1
    ):
        with attempt:
            try:
                response = await client.request(method, path, content=content, headers=sent)
            except httpx.TransportError as error:
                raise UnansweredError(f"{method} {path}: {error!r}") from error
            if _again(response):
                raise UnansweredError(f"{method} {path}: {problem_code(response)}", _retry_after(response))
            response.extensions["attempts"] = attempt.num
            return response
    raise AssertionError("the last attempt returns or raises")


def problem_code(response: httpx.Response) -> str:
    """The code of a problem document (RFC 9457), the status where there is none."""
    try:
        return str(response.json()["code"])
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)


def reasons(response: httpx.Response) -> tuple[str, ...]:
    """What a problem document finds wrong and where; its detail when it does not say where."""
    try:
        found: dict[str, Any] = response.json()
    except ValueError:
        return (response.text[:200],)
    errors = found.get("errors") or []
    return tuple(f"{error['at']}: {error['reason']}" for error in errors) or (str(found.get("detail", "")),)


async def each(items: Iterable[T], concurrency: int, work: Callable[[T], Awaitable[None]]) -> None:
    """`work` is done for all items; they begin in their order, so many at once. The first error ends it all."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def settled(what: Callable[[], Awaitable[T]], good: Callable[[T], bool], *, seconds: float) -> T:
    """The first good answer of `what`, which other processes bring about; after `seconds` the last one there was."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not good(found := await what()) and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(POLL_SECONDS)
    return found


def _again(response: httpx.Response) -> bool:
    return response.status_code in {429, 502, 503, 504} or (
        response.status_code == 409 and problem_code(response) == "request_in_progress"
    )


def _retry_after(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else None


def _backoff(error: Exception) -> bool | float:
    if not isinstance(error, UnansweredError):
        return False
    return True if error.retry_after_seconds is None else error.retry_after_seconds
