"""HTTP calls to another service, in the name of whoever called us."""

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

import httpx
import orjson
from prometheus_client import Histogram
from pybreaker import STATE_CLOSED

from services.common.breaker import Breaker, BreakerOpenError
from services.common.errors import DomainError, unavailable
from services.common.metrics import BUCKETS_SECONDS

TIMEOUT_SECONDS: Final = 5.0
CALLS_MAX: Final = 32  # at once; more wait here, so that one caller's crowd does not fill the other's pools
FAILURES: Final = 5  # in a row
RESET_SECONDS: Final = 1.0  # under the longest pause of whoever tries again, so that it is not what recovery waits for
_PASSED_ON: Final = ("Retry-After",)  # of a refusal's headers

call_seconds = Histogram(
    "call_seconds",
    "Time of a call to another service, by its answer; 0: there was none",
    ["service", "status"],
    buckets=BUCKETS_SECONDS,
)


class NoAnswerError(Exception):
    """What came was not the service's own answer, or says that it cannot answer now."""


class Service:
    """The HTTP API of `name` at `url`, behind a breaker of that name.

    Its own refusals (4xx) show that it is alive; 5xx, what is no answer of its own, and none in time are failures. It
    limits whoever's token it sees. Where that is always the caller's own, a 429 is a failure: whoever asks next would
    have it, too. Where it is asked `for_users`, a 429 is the one user's, and a refusal with its Retry-After: many of
    them must not keep the others out.
    """

    def __init__(self, name: str, url: str, *, for_users: bool = False) -> None:
        self._name = name
        self._for_users = for_users
        self.breaker = Breaker(
            name,
            deadline_seconds=TIMEOUT_SECONDS,
            failures=FAILURES,
            reset_seconds=RESET_SECONDS,
            healthy=(DomainError,),
        )
        self._http = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(TIMEOUT_SECONDS, pool=None),
            # One more, for the probe: connections of calls that have no answer may still be in use.
            limits=httpx.Limits(max_connections=CALLS_MAX + 1, max_keepalive_connections=CALLS_MAX),
        )
        self._turns = asyncio.Semaphore(CALLS_MAX)

    async def get(self, path: str, *, authorization: str, parameters: Mapping[str, int]) -> Any:
        """The JSON that is answered to `authorization`, the value of that header.

        The service's own refusal as it was told; 503 `unavailable` when it cannot answer now and may be asked again,
        with the Retry-After of the breaker, and at once, while that is open.
        """

        async def ask() -> Any:
            return await self._answer(path, authorization, parameters)

        try:
            if self.breaker.state != STATE_CLOSED:
                return await self.breaker.call(ask)  # the one probe, or refused: neither is to wait for its turn
            async with self._turns:
                return await self.breaker.call(ask)
        except BreakerOpenError as error:
            wait = max(1, math.ceil(error.retry_after))
            raise unavailable(f"{self._name} cannot answer now.", retry_after_seconds=wait) from error
        except (NoAnswerError, httpx.HTTPError, TimeoutError) as error:
            raise unavailable(f"{self._name} cannot answer now.") from error

    async def aclose(self) -> None:
        """Its connections are closed."""
        await self._http.aclose()

    async def _answer(self, path: str, authorization: str, parameters: Mapping[str, int]) -> Any:
        """What it says. DomainError is its refusal, anything else that is raised a failure."""
        clock = asyncio.get_running_loop().time
        started, status = clock(), 0
        try:
            response = await self._http.get(path, params=dict(parameters), headers={"Authorization": authorization})
            status = response.status_code
        finally:
            call_seconds.labels(self._name, status).observe(clock() - started)
        if status >= 500 or (status == 429 and not self._for_users):
            raise NoAnswerError(f"status {status}")
        try:
            content = orjson.loads(response.content)
            refusal = None if response.is_success else _refusal(content, response.headers)
        except (ValueError, KeyError, TypeError) as error:  # a proxy's page, say
            raise NoAnswerError(f"status {status}, and no answer of its own: {response.text[:100]}") from error
        if refusal is not None:
            raise refusal
        return content


def _refusal(content: dict[str, Any], headers: Mapping[str, str]) -> DomainError:
    """TypeError or KeyError when `content` is no problem document of ours."""
    code, status, detail = content["code"], content["status"], content["detail"]
    extra = {name: value for name, value in content.items() if name not in {"code", "status", "detail"}}
    return DomainError(code, status, detail, extra=extra, headers={n: headers[n] for n in _PASSED_ON if n in headers})
