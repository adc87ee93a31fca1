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

    async def get(self, path: str, *, token: str, parameters: Mapping[str, int]) -> Any:
        """The JSON that is answered to the holder of `token`.

        The service's own refusal as it was told; 503 `unavailable` when it cannot answer now and may be asked again.
        """
        clock = asyncio.get_running_loop().time
        async with self._turns:
            started, status = clock(), 0
            try:
                response = await self._http.get(
                    path, params=dict(parameters), headers={"Authorization": f"Bearer {token}"}
                )
                status = response.status_code
            except httpx.TransportError as error:
                self._told(answers=False, reason=repr(error))
                raise unavailable(f"{self._name} does not answer.") from error
            finally:
                call_seconds.labels(self._name, status).observe(clock() - started)
        if status >= 500 or status == 429:
            self._told(answers=False, reason=f"status {status}")
            raise unavailable(f"{self._name} cannot answer now.")
        self._told(answers=True, reason="")
        content = orjson.loads(response.content)
        if status >= 400:
            raise _refusal(content)
        return content

    async def aclose(self) -> None:
        """Its connections are closed."""
        await self._http.aclose()

    def _told(self, *, answers: bool, reason: str) -> None:
        """Once for each change, not for each call: thousands may fail for one reason."""
        if answers != self._answers:
            self._answers = answers
            if answers:
                log.info("call.answered_again", service=self._name)
            else:
                log.warning("call.failed", service=self._name, reason=reason)


def _refusal(content: dict[str, Any]) -> DomainError:
    own = ("code", "status", "detail")
    extra = {name: value for name, value in content.items() if name not in own}
    return DomainError(content["code"], content["status"], content["detail"], extra=extra)
