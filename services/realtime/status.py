"""How what is behind the stream is: the outboxes' lag and the breakers' states, from the metrics of its processes."""

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import httpx
import structlog
from prometheus_client import Counter
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from services.common import clock
from services.common.schemas import Time

FRESH_SECONDS: Final = 2.0  # for so long an answer serves everybody
ANSWER_SECONDS: Final = 1.0  # that a process has for its metrics
_BREAKER: Final[tuple[Literal["closed", "half_open", "open"], ...]] = ("closed", "half_open", "open")  # 0, 1, 2
# All else is left out before it is parsed: a process has hundreds of lines, and this loop serves WebSockets.
_WANTED: Final = (
    "process_info{",
    "outbox_depth{",
    "outbox_oldest_age_seconds{",
    "outbox_parked_aggregates{",
    "breaker_state{",
)

log = structlog.get_logger()
realtime_status_reads_total = Counter(
    "realtime_status_reads_total", "Metrics asked of other processes, by result", ["at", "result"]
)


class OutboxStatus(BaseModel):
    """Rows that a relay has yet to send, up to 100,000, and the aggregates of which some cannot be sent."""

    outbox: str
    depth: int
    oldest_age_seconds: float
    parked_aggregates: int


class BreakerStatus(BaseModel):
    """A breaker."""

    breaker: str
    state: Literal["closed", "half_open", "open"]


class PartStatus(BaseModel):
    """A process, by the host and port of its metrics. One that does not answer has nothing else."""

    at: str
    answers: bool
    process: str | None = None
    outboxes: list[OutboxStatus] = []
    breakers: list[BreakerStatus] = []


class StatusAnswer(BaseModel):
    """All parts, as they were at `as_of`."""

    as_of: Time
    parts: list[PartStatus]


class Status:
    """Asks the processes whose metrics are at `urls`, at most once in two seconds however many want to know."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._http = httpx.AsyncClient(timeout=ANSWER_SECONDS)
        self._turn = asyncio.Lock()
        self._told = StatusAnswer(as_of=clock.to_text(clock.now()), parts=[])
        self._fresh_until = 0.0
        self._silent: set[httpx.URL] = set()

    async def now(self) -> StatusAnswer:
        """At most two seconds old."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            if loop.time() >= self._fresh_until:
                parts = await asyncio.gather(*map(self._part, self._urls))
                self._told = StatusAnswer(as_of=clock.to_text(clock.now()), parts=parts)
                self._fresh_until = loop.time() + FRESH_SECONDS
            return self._told

    async def aclose(self) -> None:
        """Its connections are closed."""
        await self._http.aclose()

    async def _part(self, url: httpx.URL) -> PartStatus:
        at = url.netloc.decode()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # httpx bounds each read, not their sum
                response = (await self._http.get(url)).raise_for_status()
            part = parsed(at, response.text)
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            realtime_status_reads_total.labels(at, "failed").inc()
            if url not in self._silent:  # once for each change
                log.warning("realtime.part_silent", at=at, error=repr(error))
            self._silent.add(url)
            return PartStatus(at=at, answers=False)
        realtime_status_reads_total.labels(at, "ok").inc()
        self._silent.discard(url)
        return part


def parsed(at: str, text: str) -> PartStatus:
    """What the metrics in `text` say. ValueError when they are not what a process of ours says."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families("\n".join(line for line in text.splitlines() if _wanted(line)) + "\n"):
        for sample in family.samples:
            (label,) = sample.labels.values()
            found.setdefault(sample.name, {})[label] = sample.value
    if not (process := next(iter(found.get("process_info", ())), None)):
        raise ValueError("these are not the metrics of a process of ours")
    ages, parked = found.get("outbox_oldest_age_seconds", {}), found.get("outbox_parked_aggregates", {})
    return PartStatus(
        at=at,
        answers=True,
        process=process,
        outboxes=[
            OutboxStatus(
                outbox=name,
                depth=int(depth),
                oldest_age_seconds=round(ages.get(name, 0.0), 3),
                parked_aggregates=int(parked.get(name, 0)),
            )
            for name, depth in found.get("outbox_depth", {}).items()
        ],
        breakers=[
            BreakerStatus(breaker=name, state=_BREAKER[int(number)])
            for name, number in found.get("breaker_state", {}).items()
        ],
    )


def _wanted(line: str) -> bool:
    return line.startswith(_WANTED)
