"""What was before: an order's events from orders-api, with the subscriber's own token. Whose it is is decided there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import Counter

from services.common.calls import Service
from services.common.errors import DomainError

PAGE_EVENTS: Final = 200  # bounds what one subscriber's page takes of memory; few orders have ten events

realtime_pages_total = Counter(
    "realtime_pages_total", "Pages of an order's events asked of orders-api, by the answer's code", ["code"]
)


@dataclass(frozen=True, slots=True)
class Page:
    """Events in version order, and whether more were there."""

    events: Sequence[dict[str, Any]]
    more: bool


class Backlog:
    """Reads events of orders."""

    def __init__(self, orders: Service) -> None:
        self._orders = orders

    async def page(self, order_id: str, *, token: str, after_version: int) -> Page:
        """The next events after `after_version`. 404 `not_found`, 401, 403 as orders-api says; 503, 429: ask again."""
        try:
            content = await self._orders.get(
                f"/v1/orders/{order_id}/events",
                authorization=f"Bearer {token}",
                parameters={"after_version": after_version, "limit": PAGE_EVENTS},
            )
        except DomainError as error:
            realtime_pages_total.labels(error.code).inc()
            raise
        realtime_pages_total.labels("ok").inc()
        return Page(content["data"], content["next_cursor"] is not None)
