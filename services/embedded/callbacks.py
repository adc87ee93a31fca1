"""What the payments sandbox does by itself: payments settle, and callbacks are sent until they are taken."""

import asyncio
import time
from typing import Final

import httpx
import structlog

from services.common.signature import sign
from services.embedded.ledger import Callback, Ledger

HEADER: Final = "Payment-Signature"
TIMEOUT_SECONDS: Final = 5.0
LEASE_MS: Final = 10_000  # over the time-out: until then nobody sends it a second time
AT_ONCE_MAX: Final = 50
FIRST_AGAIN_MS: Final = 200  # doubled with each attempt
LAST_AGAIN_MS: Final = 30_000

_log = structlog.get_logger()


class Clockwork:
    """Does what is due in `ledger`; callbacks go to `url`, signed with `secret`."""

    def __init__(self, ledger: Ledger, url: str, secret: bytes) -> None:
        self._ledger, self._url, self._secret = ledger, url, secret
        self._turn = asyncio.Event()
        self._taken = True  # whether the last callback was

    def wake(self) -> None:
        """Something may be due earlier than it was."""
        self._turn.set()

    async def run(self) -> None:
        """Until cancelled. A callback that is cut off by that is sent again, as it was not yet taken."""
        async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as http, asyncio.TaskGroup() as sending:
            under_way: set[asyncio.Task[None]] = set()
            while True:
                self._turn.clear()
                while self._ledger.settle(now_ms()):
                    await asyncio.sleep(0)  # requests have their turn
                room = AT_ONCE_MAX - len(under_way)
                for callback in self._ledger.claim_callbacks(now_ms(), lease_ms=LEASE_MS, limit=room):
                    task = sending.create_task(self._send(http, callback))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                    task.add_done_callback(lambda _: self.wake())
                await self._until_due(callbacks=room > 0)

    async def _until_due(self, *, callbacks: bool) -> None:
        due = self._ledger.next_due_ms() if callbacks else None  # else the next that ends wakes us
        try:
            async with asyncio.timeout(None if due is None else max(0, due - now_ms()) / 1000):
                await self._turn.wait()
        except TimeoutError:
            return  # it is due

    async def _send(self, http: httpx.AsyncClient, callback: Callback) -> None:
        signature = sign(self._secret, callback.body, at=int(time.time()))
        headers = {"Content-Type": "application/json", HEADER: signature}
        try:
            answer = await http.post(self._url, content=callback.body, headers=headers)
            reason = "" if answer.is_success else f"status {answer.status_code}"
        except httpx.HTTPError as error:
            reason = repr(error)
        if reason:
            again_ms = min(FIRST_AGAIN_MS << min(callback.attempts, 16), LAST_AGAIN_MS)
            self._ledger.tell_again(callback, now_ms() + again_ms)
        else:
            self._ledger.told(callback)
        if self._taken != (not reason):  # said once for each change, as hundreds may fail for one reason
            self._taken = not reason
            say = _log.info if self._taken else _log.warning
            say("callbacks.taken" if self._taken else "callbacks.not_taken", url=self._url, reason=reason)


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
