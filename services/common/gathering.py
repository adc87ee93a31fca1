"""What is asked in one turn of the event loop is asked in one call: who is busy asks less often, who is not as soon.

The batching of "DataLoader" (github.com/graphql/dataloader), without its memory.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

Asked = TypeVar("Asked")
Given = TypeVar("Given")


class Gathering(Generic[Asked, Given]):
    """Calls of `work`, which answers up to `most` at once, in their order."""

    def __init__(
        self, work: Callable[[Sequence[Asked]], Awaitable[Sequence[Given]]], *, most: int, one_by_one: bool = False
    ) -> None:
        self._work, self._most, self._one_by_one = work, most, one_by_one
        self._waiting: list[tuple[Asked, asyncio.Future[Given]]] = []
        self._calls: Final[set[asyncio.Task[Any]]] = set()

    async def ask(self, asked: Asked) -> Given:
        """What `work` gives or raises for it; it was called after this was. Who is cancelled ends nobody else's."""
        loop = asyncio.get_running_loop()
        if not self._waiting and not (self._one_by_one and self._calls):
            loop.call_soon(self._begin)
        future: asyncio.Future[Given] = loop.create_future()
        self._waiting.append((asked, future))
        return await future

    async def close(self) -> None:
        """No call is under way; who still waits is cancelled."""
        waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            future.cancel()
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    def _begin(self) -> None:
        while self._waiting and not (self._one_by_one and self._calls):
            now, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            call = asyncio.create_task(self._run(now))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: "asyncio.Task[Any]") -> None:
        self._calls.discard(call)
        self._begin()

    async def _run(self, waiting: Sequence[tuple[Asked, "asyncio.Future[Given]"]]) -> None:
        wanted = [(asked, future) for asked, future in waiting if not future.done()]
        if not wanted:
            return
        try:
            results = await self._work([asked for asked, _ in wanted])
        except asyncio.CancelledError:
            for _, future in wanted:
                future.cancel()
            raise
        except Exception as error:  # noqa: BLE001  whoever asked is told, whatever it is
            for _, future in wanted:
                if not future.done():
                    future.set_exception(error)
        else:
            for (_, future), result in zip(wanted, results, strict=True):
                if not future.done():
                    future.set_result(result)
