"""The events of one key over HTTP, for a consumer that misses some of them on the topic (`Fill` of handle.py)."""

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import orjson

from services.common.breaker import Breaker
from services.common.calls import Service
from services.common.errors import DomainError
from services.common.handle import NotFilledError
from services.common.service_token import ServiceToken, TokenError
from services.common.stream import Message
from services.contracts import envelope

PAGE_EVENTS: Final = 100
EVENTS_MAX: Final = 1_000  # missing at once: what is behind so far is read in several tries


class EventsApi:
    """Reads `url` of the service `name`, with `{key}` in it, which lists events in version order.

    Its parameters are `after_version` and `limit`, its answers have `next_cursor`. While the breaker of the service or
    of the token is open NotFilledError comes at once; the consumer tries again after its pause, which is the longer.
    """

    def __init__(self, name: str, url: str, token: ServiceToken, *, source: str) -> None:
        self._url = url
        self._token = token
        self._source = source
        self._service = Service(name, "")

    @property
    def breakers(self) -> tuple[Breaker, Breaker]:
        """Of the service, and of who gives the token for it."""
        return self._service.breaker, self._token.breaker

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._service.aclose()

    async def fill(self, key: str, after_version: int) -> Sequence[Message]:
        """The first events of `key` after that version, as they are on the topic. NotFilledError."""
        events: list[dict[str, Any]] = []
        after: int | None = after_version
        while after is not None and len(events) < EVENTS_MAX:
            page = await self._page(key, after)
            try:
                events += page["data"]
                after = None if page["next_cursor"] is None else int(page["next_cursor"])
            except (ValueError, KeyError, TypeError) as error:
                raise NotFilledError(f"the answer is no page of events: {error!r}") from error
        try:
            return [self._message(key, event) for event in events]
        except (ValueError, KeyError, TypeError) as error:
            raise NotFilledError(f"the answer has what is no event: {error!r}") from error

    async def _page(self, key: str, after_version: int) -> Any:
        authorization = ""
        try:
            authorization = await self._token.authorization()
            return await self._service.get(
                self._url.format(key=quote(key, safe="")),
                authorization=authorization,
                parameters={"after_version": after_version, "limit": PAGE_EVENTS},
            )
        except TokenError as error:
            raise NotFilledError(repr(error)) from error
        except DomainError as error:
            if error.status == 401:
                self._token.refused(authorization)
            raise NotFilledError(str(error)) from error

    def _message(self, key: str, event: dict[str, Any]) -> Message:
        headers = envelope.headers(
            event_id=event["event_id"],
            type_=event["type"],
            source=self._source,
            subject=key,
            time=event["occurred_at"],
            version=event["version"],
            traceparent=None,
        )
        return Message(key.encode(), orjson.dumps(event), headers)
