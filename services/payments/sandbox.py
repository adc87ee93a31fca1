"""The payments sandbox as a provider: HTTP, JSON, `Idempotency-Key`."""

from collections.abc import AsyncIterator
from dataclasses import asdict
from datetime import datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from services.payments.provider import Charge, ProviderError, ProviderState, Standing, StepRefusedError

T = TypeVar("T", bound=BaseModel)
_CONNECTIONS_MAX: Final = 64


class _Payment(BaseModel):
    order_id: str
    reference: str
    state: ProviderState
    currency: str
    authorized_amount: int
    captured_amount: int
    refunded_amount: int
    failure: str | None


class _Page(BaseModel):
    data: list[_Payment]
    next_cursor: str | None


class SandboxProvider:
    """The sandbox at `url`; no part of a request may take longer than `timeout_seconds`. See `Provider`."""

    name = "sandbox"

    def __init__(self, url: str, *, timeout_seconds: float, page: int = 200) -> None:
        self._page = page
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=_CONNECTIONS_MAX, max_keepalive_connections=_CONNECTIONS_MAX),
        )

    async def authorize(self, charge: Charge, *, key: str) -> Standing:
        """See `Provider`."""
        return await self._step("/v1/payments", asdict(charge), key)

    async def capture(self, standing: Standing, amount: int, *, final: bool, key: str) -> Standing:
        """See `Provider`."""
        return await self._step(_path(standing.reference, "/capture"), {"amount": amount, "final": final}, key)

    async def void(self, standing: Standing, *, key: str) -> Standing:
        """See `Provider`."""
        return await self._step(_path(standing.reference, "/void"), {}, key)

    async def refund(self, standing: Standing, amount: int, *, key: str) -> Standing:
        """See `Provider`."""
        return await self._step(_path(standing.reference, "/refund"), {"amount": amount}, key)

    async def look_up(self, charge: Charge, reference: str | None, *, key: str) -> Standing | None:  # noqa: ARG002
        """See `Provider`. Any payment of the order counts, whatever its key: there has to be no second one."""
        if reference is not None:
            return _standing(_parsed(_Payment, await self._ask("GET", _path(reference))))
        answer = await self._ask("GET", "/v1/payments", params={"order_id": charge.order_id})
        found = _parsed(_Page, answer).data
        return _standing(found[0]) if found else None

    async def standings(self, since: datetime) -> AsyncIterator[Standing]:
        """See `Provider`. In the order of their last change; one that changes meanwhile comes again."""
        told: dict[str, str | int] = {"changed_since": since.isoformat(), "limit": self._page}
        while True:
            page = _parsed(_Page, await self._ask("GET", "/v1/payments", params=told))
            for payment in page.data:
                yield _standing(payment)
            if page.next_cursor is None:
                return
            told = {"cursor": page.next_cursor, "limit": self._page}

    async def aclose(self) -> None:
        """See `Provider`."""
        await self._http.aclose()

    async def _step(self, path: str, body: dict[str, Any], key: str) -> Standing:
        answer = await self._ask("POST", path, json=body, headers={"Idempotency-Key": key})
        return _standing(_parsed(_Payment, answer))

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = await self._http.request(method, path, **options)
        except httpx.RequestError as error:
            raise ProviderError(f"no answer: {error!r}") from error
        if response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise ProviderError(f"status {response.status_code}: {response.text[:300]}")
        if response.is_error:
            raise StepRefusedError(_code(response))
        return response


def _path(reference: str, step: str = "") -> str:
    return f"/v1/payments/{quote(reference, safe='')}{step}"


def _code(response: httpx.Response) -> str:
    try:
        return str(response.json()["code"])
    except (ValueError, KeyError, TypeError) as error:
        raise ProviderError(f"status {response.status_code} with a body that says nothing") from error


def _parsed(model: type[T], response: httpx.Response) -> T:
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise ProviderError(f"an answer that says nothing: {error!r}") from error


def _standing(payment: _Payment) -> Standing:
    return Standing(**dict(payment))
