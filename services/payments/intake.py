"""The consumer: what events of orders ask for goes on the list of steps. No provider is asked here."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import ids
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.inbox import Inbox, arrival
from services.common.stream import Received
from services.contracts.envelope import traceparent_of
from services.contracts.orders import EventType
from services.payments import commands, domain
from services.payments.commands import Asked

CONSUMER: Final = "payments-worker"
INBOX: Final = Inbox("payments", CONSUMER)
_KNOWN: Final = frozenset({EventType.PLACED, EventType.SHIPPED, EventType.CANCELLED, EventType.RETURNED})


class Intake:
    """Takes events of orders for payments at `provider`; `taken` is called after there was something to take."""

    def __init__(self, database: Database, provider: str, *, taken: Callable[[], None]) -> None:
        self._database = database
        self._provider = provider
        self._taken = taken
        self._months: set[date] = set()

    async def handle(self, topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        """What `messages` ask for is on the list of steps, once; gives the outcomes.

        One READ COMMITTED transaction: inbox rows in the order of their keys, then payments by order_id, then steps.
        GapError, PoisonError before anything is written; TransientError, LockTimeoutError.
        """
        read = [self._read(message) for message in messages]
        for asked in read:
            if asked is not None and asked.payment is not None:
                await self._month(asked)
        outcomes: Counter[str] = Counter()
        async with self._database.transaction() as connection:
            new = await INBOX.judge_changes(connection, topic, messages)
            wanted = [asked for asked, is_new in zip(read, new, strict=True) if is_new and asked is not None]
            taken = await commands.take(connection, wanted) if wanted else 0
        outcomes["applied"] = taken
        outcomes["ignored"] = sum(new) - taken
        outcomes["stale"] = len(new) - sum(new)
        if taken:
            self._taken()
        return outcomes

    async def _month(self, asked: Asked) -> None:
        """The partition of the order's month is there: it is made when the first payment of the month comes."""
        month = ids.order_key(ids.from_text(asked.order_id)).created_at.date().replace(day=1)
        if month not in self._months:
            await commands.create_month(self._database, month)
            self._months.add(month)

    def _read(self, message: Received) -> Asked | None:
        """What a message asks for, None when that is nothing. PoisonError."""
        arrived = arrival(message)
        if arrived.type not in _KNOWN:
            return None
        try:
            event: dict[str, Any] = orjson.loads(message.value)
            told = (event["order_id"], event["version"], event["type"])
            payment = None
            if arrived.type == EventType.PLACED:
                payment = domain.payment_of_order(event, self._provider)
                if payment is None:
                    return None
                UUID(payment.user_id)
                _storable(payment.payment_method, payment.currency)
            step = domain.step_of_event(event)
            at = datetime.fromisoformat(event["occurred_at"])
            ids.order_key(ids.from_text(event["order_id"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PoisonError(message, f"it is no event of an order: {error!r}") from error
        if told != (arrived.key, arrived.version, arrived.type):
            raise PoisonError(
                message, f"key and headers say {(arrived.key, arrived.version, arrived.type)}, not {told}"
            )
        if step is None:
            return None
        return Asked(arrived.key, step, payment, traceparent_of(message.headers), at)


def _storable(*texts: object) -> None:
    for text in texts:
        if not isinstance(text, str) or not text or "\0" in text:
            raise ValueError(f"no text: {text!r}")
