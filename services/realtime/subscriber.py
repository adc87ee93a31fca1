"""One WebSocket: what it follows, what it has had, and what waits to be sent to it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge

from services.common.errors import DomainError, not_found
from services.common.websocket import Close, Connection, ConnectionGoneError, ended, expires_in
from services.realtime import frames
from services.realtime.backlog import Backlog, Page
from services.realtime.frames import NoMoreOfOne, NoMoreOfOwn, OneOrder, OwnOrders
from services.realtime.hub import Frame, Hub, LiveEvent
from services.realtime.sequence import Sequence

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 5.0  # between tries while orders-api cannot answer
LIMITED_SECONDS_MAX: Final = 60.0  # it is asked again, whatever Retry-After a 429 has
FAULT: Final = "This is our fault, and it has been logged."

log = structlog.get_logger()
realtime_sent_total = Counter("realtime_sent_total", "Messages handed to the network, events and answers")
realtime_gaps_total = Counter("realtime_gaps_total", "Gaps met in the live feed, which are then filled by a page")
realtime_subscriptions = Gauge("realtime_subscriptions", "Orders followed one by one, and users followed, of all")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one WebSocket. What waits to be sent is at most `queue_messages`, and `queue_bytes` or one message."""

    queue_messages: int
    queue_bytes: int
    orders: int
    own_orders: int


class Subscriber:
    """Follows orders for one client until it goes. Each version of an order is sent once, in order."""

    def __init__(self, connection: Connection, hub: Hub, backlog: Backlog, limits: Limits) -> None:
        self._connection = connection
        self._user_id = str(connection.claims.user_id)
        self._hub = hub
        self._backlog = backlog
        self._limits = limits
        self._sequences: dict[str, Sequence] = {}
        self._followed: set[str] = set()  # orders that were asked for one by one
        self._own = False  # whether all of one's own are followed
        self._asked: dict[str, int] = {}  # orders that are to be told as subscribed once orders-api allows it
        self._behind: dict[str, None] = {}  # orders to fetch, in the order in which they fell behind
        self._catching_up: asyncio.Task[None] | None = None
        self._queue: deque[Frame] = deque()
        self._queued_bytes = 0
        self._ending: tuple[int, str] | None = None
        self._changed = asyncio.Event()  # there is something to send, or an end
        self._room = asyncio.Event()  # little waits to be sent
        self._room.set()

    async def run(self) -> None:
        """Serve the client until it goes or is closed."""
        sending = asyncio.create_task(self._send())
        seconds = expires_in(self._connection.claims, time.time())
        expiry = asyncio.get_running_loop().call_later(seconds, self.end, Close.TOKEN, "The token has expired.")
        try:
            while True:
                self._answer(await self._connection.read())
        except ConnectionGoneError:
            pass  # how it ended is in the metrics
        finally:
            expiry.cancel()
            self._leave()
            await ended(sending, *([self._catching_up] if self._catching_up else []))

    def live(self, event: LiveEvent) -> None:
        """See hub.Subscriber."""
        sequence = self._sequences.get(event.order_id)
        if sequence is None:  # one of one's own, of which this is the next event
            sequence = self._begin(event.order_id, event.version - 1, behind=False)
        if event.frame is None:
            sequence.missed(event.version)
        elif sequence.live(event.version):
            self._push(event.frame)
        if sequence.behind and event.order_id not in self._behind:
            realtime_gaps_total.inc()
            self._fetch(event.order_id)

    def end(self, code: int, reason: str) -> None:
        """What waits is not sent any more; the client is told `code` and why."""
        if self._ending is None:
            self._ending = (int(code), reason)
            self._clear()
            self._changed.set()

    def _answer(self, message: str | bytes) -> None:
        try:
            match frames.request(message):
                case OneOrder(order_id=order_id, after_version=version):
                    self._follow(order_id, version)
                case OwnOrders(after=after):
                    self._follow_own(after)
                case NoMoreOfOne(order_id=order_id):
                    self._unfollow(order_id)
                    self._push(frames.unsubscribed(order_id))
                case NoMoreOfOwn():
                    self._unfollow_own()
                    self._push(frames.unsubscribed(None))
        except DomainError as error:
            self._push(frames.refused(error))

    def _follow(self, order_id: str, after_version: int) -> None:
        if order_id in self._asked:
            return  # its answer is under way
        if order_id not in self._followed:
            if len(self._followed) >= self._limits.orders:
                raise DomainError(
                    "too_many_subscriptions", 422, f"One WebSocket follows at most {self._limits.orders} orders."
                )
            self._followed.add(order_id)
            realtime_subscriptions.inc()
            self._hub.follow_order(order_id, self)
        sequence = self._sequences.get(order_id)
        if sequence is None:
            self._asked[order_id] = after_version
            self._begin(order_id, after_version, behind=True)
            self._fetch(order_id)
        elif sequence.behind:
            self._asked[order_id] = sequence.last
        else:
            self._push(frames.subscribed(order_id, sequence.last))

    def _follow_own(self, after: dict[str, int]) -> None:
        if not self._own:
            self._own = True
            realtime_subscriptions.inc()
            self._hub.follow_user(self._user_id, self)
        self._push(frames.subscribed(None))
        for order_id, version in after.items():
            if order_id not in self._sequences:
                self._begin(order_id, version, behind=True)
                self._fetch(order_id)

    def _unfollow(self, order_id: str) -> None:
        if order_id in self._followed:
            self._followed.discard(order_id)
            realtime_subscriptions.dec()
            self._hub.leave_order(order_id, self)
        self._asked.pop(order_id, None)
        sequence = self._sequences.get(order_id)
        if sequence is not None and (sequence.behind or not self._own):
            del self._sequences[order_id]

    def _unfollow_own(self) -> None:
        if self._own:
            self._own = False
            realtime_subscriptions.dec()
            self._hub.leave_user(self._user_id, self)
        for order_id in self._sequences.keys() - self._followed:
            del self._sequences[order_id]

    def _leave(self) -> None:
        for order_id in list(self._followed):
            self._unfollow(order_id)
        self._unfollow_own()

    def _begin(self, order_id: str, last: int, *, behind: bool) -> Sequence:
        """Where the order is. Of one's own the one longest known is forgotten: it would begin with its next event."""
        if len(self._sequences) - len(self._followed) >= self._limits.own_orders:
            level = (one for one, its in self._sequences.items() if one not in self._followed and not its.behind)
            if (forgotten := next(level, None)) is not None:
                del self._sequences[forgotten]
        sequence = self._sequences[order_id] = Sequence(last, behind=behind)
        return sequence

    def _fetch(self, order_id: str) -> None:
        self._behind[order_id] = None
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        """Nothing is behind. One order and one page at a time: a client costs orders-api one request at once."""
        try:
            while self._behind:
                order_id = next(iter(self._behind))
                await self._level(order_id)
                self._behind.pop(order_id, None)
        except Exception:
            log.exception("realtime.not_caught_up")
            self.end(Close.INTERNAL, FAULT)

    async def _level(self, order_id: str) -> None:
        """The order is not behind, or no longer followed."""
        pause = PAUSE_SECONDS_MIN
        while (sequence := self._sequences.get(order_id)) is not None and sequence.behind and self._ending is None:
            before = sequence.last
            try:
                page = await self._backlog.page(order_id, token=self._connection.token, after_version=before)
            except DomainError as error:
                if error.status == 429:
                    pause = max(pause, _limited_seconds(error))
                elif error.status != 503:
                    self._refused(order_id, sequence, error)
                    continue
            else:
                await self._take(order_id, sequence, page)
            if (
                self._sequences.get(order_id) is sequence and sequence.behind and sequence.last == before
            ):  # not to be had now; its metrics are those of the calls
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _take(self, order_id: str, sequence: Sequence, page: Page) -> None:
        """The page's events wait to be sent, as fast as the client reads, unless it leaves the order meanwhile."""
        if self._sequences.get(order_id) is not sequence:
            return
        if order_id in self._asked:
            self._push(frames.subscribed(order_id, self._asked.pop(order_id)))
        for event in page.events:
            await self._room.wait()
            if self._sequences.get(order_id) is not sequence:
                return
            if order_id not in self._followed and _owner(event) != self._user_id:
                # Staff may read it, and named it among their own: nothing of it would ever come live.
                self._refused(order_id, sequence, not_found())
                return
            sequence.fetched(event["version"])
            self._push(frames.frame(event))
        if not page.more:
            sequence.fetched_all()

    def _refused(self, order_id: str, sequence: Sequence, error: DomainError) -> None:
        if self._sequences.get(order_id) is not sequence:
            return
        if error.status == 401:
            self.end(Close.TOKEN, error.detail)
        elif error.status == 403:
            self.end(Close.SCOPE, error.detail)
        else:
            self._unfollow(order_id)
            self._sequences.pop(order_id, None)
            error.extra.setdefault("instance", f"/v1/orders/{order_id}/events")
            self._push(frames.refused(error))

    def _push(self, frame: Frame) -> None:
        if self._ending is not None:
            return
        size = self._queued_bytes + frame.size
        if self._queue and (len(self._queue) >= self._limits.queue_messages or size > self._limits.queue_bytes):
            self.end(Close.SLOW, "Reads too slowly: connect again, and subscribe after the last versions you have.")
            return
        self._queue.append(frame)
        self._queued_bytes = size
        self._changed.set()
        if len(self._queue) * 2 > self._limits.queue_messages or size * 2 > self._limits.queue_bytes:
            self._room.clear()  # for pages: the other half is for what comes live

    def _clear(self) -> None:
        self._queue.clear()
        self._queued_bytes = 0
        self._room.set()

    async def _send(self) -> None:
        """What waits is sent, until there is an end, which is told; what cannot be sent is one."""
        try:
            try:
                ending = await self._send_until_end()
            except OSError:
                raise
            except Exception:
                log.exception("realtime.not_sent")
                ending = (Close.INTERNAL, FAULT)
                self.end(*ending)
            await self._connection.close(*ending)
        except OSError:
            pass  # it has gone: reading says so too, and ends us

    async def _send_until_end(self) -> tuple[int, str]:
        write, queue, changed = self._connection.write, self._queue, self._changed
        while self._ending is None:
            while queue:
                frame = queue.popleft()
                self._queued_bytes -= frame.size
                await write(frame.text)
                realtime_sent_total.inc()
            self._room.set()
            await changed.wait()
            changed.clear()
        return self._ending


def _limited_seconds(error: DomainError) -> float:
    """How long a user who has asked too much is not to ask."""
    told = error.headers.get("Retry-After", "")
    return min(float(told), LIMITED_SECONDS_MAX) if told.isdecimal() else 0.0


def _owner(event: dict[str, Any]) -> str:
    owner: str = event["data"]["after"]["user_id"]
    return owner
