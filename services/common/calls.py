"""HTTP calls to another service, in the name of whoever called us."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson
import structlog
from prometheus_client import Histogram

from services.common.errors import DomainError, unavailable
from services.common.metrics import BUCKETS_SECONDS

TIMEOUT_SECONDS: Final = 5.0
CALLS_MAX: Final = 32  # at once; more wait here, so that one caller's crowd does not fill the other's pools

log = structlog.get_logger()
call_seconds = Histogram(
    "call_seconds",
    "Time of a call to another service, by its answer; 0: there was none",
    ["service", "status"],
    buckets=BUCKETS_SECONDS,
)


class Service:
    """The HTTP API of `name` at `url`."""

    def __init__(self, name: str, url: str) -> None:
        self._name = name
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(TIMEOUT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=CALLS_MAX, max_keepalive_connections=CALLS_MAX),
        )
        self._turns = asyncio.Semaphore(CALLS_MAX)
        self._answers = True

    async def get(self, path: str, *, authorization: str, parameters: Mapping[str, int]) -> Any:
        """The JSON that is answered to `authorization`, the value of that header.

        The service's own refusal as it was told; 503 `unavailable` when it cannot answer now and may be asked again.
        """
        clock = asyncio.get_running_loop().time
        async with self._turns:
            started, status = clock(), 0
            try:
                async with asyncio.timeout(TIMEOUT_SECONDS):  # httpx bounds each read, not their sum
                    response = await self._http.get(
                        path, params=dict(parameters), headers={"Authorization": authorization}
                    )
                status = response.status_code
            except (httpx.HTTPError, TimeoutError) as error:
                raise self._unavailable(repr(error)) from error
            finally:
                call_seconds.labels(self._name, status).observe(clock() - started)
        try:
            if response.is_success:
                content = orjson.loads(response.content)
            elif status < 500 and status != 429:
                content = _refusal(orjson.loads(response.content))
            else:
                raise self._unavailable(f"status {status}")
        except (ValueError, KeyError, TypeError) as error:  # a proxy's page, say
            raise self._unavailable(f"status {status}, and no answer of its own: {response.text[:100]}") from error
        self._told(answers=True, reason="")
        if isinstance(content, DomainError):
            raise content
        return content

    async def aclose(self) -> None:
        """Its connections are closed."""
        await self._http.aclose()

    def _unavailable(self, reason: str) -> DomainError:
        self._told(answers=False, reason=reason)
        return unavailable(f"{self._name} cannot answer now.")

    def _told(self, *, answers: bool, reason: str) -> None:
        """Once for each change, not for each call: thousands may fail for one reason."""
        if answers != self._answers:
            self._answers = answers
            if answers:
                log.info("call.answered_again", service=self._name)
            else:
                log.warning("call.failed", service=self._name, reason=reason)


def _refusal(content: dict[str, Any]) -> DomainError:
    """TypeError or KeyError when `content` is no problem document of ours."""
    code, status, detail = content["code"], content["status"], content["detail"]
    extra = {name: value for name, value in content.items() if name not in {"code", "status", "detail"}}
    return DomainError(code, status, detail, extra=extra)
