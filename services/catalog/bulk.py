"""Many products in one request: read line by line, committed batch by batch, each line answered with what it did."""

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import orjson
import structlog
from prometheus_client import Counter

from services.catalog.commands import Result, Wanted, Written
from services.common import openapi
from services.common.errors import DomainError
from services.common.ndjson import LINE_BYTES_MAX, Line, Splitter

BATCH_LINES: Final = 500  # a transaction of about a tenth of a second
BATCH_BYTES: Final = 1024 * 1024  # of lines that wait to be committed
IDLE_SECONDS: Final = 1.0  # without a line, then those that wait are committed

Parse = Callable[[bytes], Wanted]
Commit = Callable[[Sequence[Wanted]], Awaitable[Sequence[Written]]]
Tell = Callable[[bytes], Awaitable[None]]

RESULTS: Final = {Result.CREATED: "created", Result.CHANGED: "replaced", Result.UNCHANGED: "unchanged"}

log = structlog.get_logger()
bulk_lines_refused_total = Counter("bulk_lines_refused_total", "Lines of bulk requests that were not taken", ["code"])


@dataclass(slots=True)
class _Batch:
    """Lines that are committed together, each product once, and what is wrong with those among them that are not."""

    lines: list[tuple[int, Wanted | DomainError]] = field(default_factory=list)
    products: set[object] = field(default_factory=set)
    size_bytes: int = 0

    def full(self) -> bool:
        return len(self.lines) >= BATCH_LINES or self.size_bytes >= BATCH_BYTES


class Bulk:
    """One request. `parse` says what a line wants, or raises what is wrong with it; `commit` puts all of a batch."""

    def __init__(self, path: str, parse: Parse, commit: Commit, tell: Tell) -> None:
        self._path, self._parse, self._commit, self._tell = path, parse, commit, tell
        self._batch = _Batch()
        self._done: Tally[str] = Tally()

    async def run(self, body: AsyncIterator[bytes]) -> None:
        """Every line is told what became of it, and at the end all of them together.

        A batch is committed whole or not at all; a product that comes again begins the next one. When one cannot be
        committed, nothing after it is: the end says `stopped` and why. When `body` raises, as it does when the client
        goes away, what was not committed by then never is.
        """
        try:
            await self._take(body)
            await self._flush()
        except DomainError as error:
            log.warning("bulk.stopped", code=error.code, **self._done)
            await self._end("stopped", error)
        else:
            await self._end("finished", None)

    async def _take(self, body: AsyncIterator[bytes]) -> None:
        splitter = Splitter()
        coming: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                coming = coming or asyncio.create_task(_next(body))
                waiting = IDLE_SECONDS if self._batch.lines else None
                if not (await asyncio.wait({coming}, timeout=waiting))[0]:
                    await self._flush()
                    continue
                piece, coming = coming.result(), None
                for line in splitter.feed(piece) if piece is not None else splitter.end():
                    await self._add(line)
                if piece is None:
                    return
        finally:
            if coming is not None:
                coming.cancel()

    async def _add(self, line: Line) -> None:
        wanted = self._wanted(line)
        if isinstance(wanted, Wanted):
            if wanted.product_id in self._batch.products:
                await self._flush()
            self._batch.products.add(wanted.product_id)
        self._batch.lines.append((line.number, wanted))
        self._batch.size_bytes += len(line.content or b"")
        if self._batch.full():
            await self._flush()

    def _wanted(self, line: Line) -> Wanted | DomainError:
        if line.content is None:
            return DomainError("body_too_large", 413, f"A line has at most {LINE_BYTES_MAX} bytes.")
        try:
            return self._parse(line.content)
        except DomainError as error:
            return error

    async def _flush(self) -> None:
        batch, self._batch = self._batch, _Batch()
        wanted = [one for _, one in batch.lines if isinstance(one, Wanted)]
        written = iter(await self._commit(wanted) if wanted else ())
        verdicts = bytearray()
        for number, one in batch.lines:
            verdict = self._refused(one) if isinstance(one, DomainError) else _verdict(next(written))
            self._done[str(verdict["result"])] += 1
            verdicts += orjson.dumps({"line": number, **verdict}, option=orjson.OPT_APPEND_NEWLINE)
        if verdicts:
            await self._tell(bytes(verdicts))

    def _refused(self, error: DomainError) -> dict[str, object]:
        bulk_lines_refused_total.labels(error.code).inc()
        return {"result": "error", "problem": self._problem(error)}

    def _problem(self, error: DomainError) -> dict[str, object]:
        return openapi.problem_content(error.code, error.status, error.detail, self._path) | error.extra

    async def _end(self, result: str, error: DomainError | None) -> None:
        counts = {name: self._done[name] for name in (*RESULTS.values(), "error")}
        problem = {} if error is None else {"problem": self._problem(error)}
        await self._tell(orjson.dumps({"result": result, **counts, **problem}, option=orjson.OPT_APPEND_NEWLINE))


def _verdict(written: Written) -> dict[str, object]:
    product = written.product
    return {"product_id": product.product_id, "result": RESULTS[written.result], "version": product.version}


async def _next(body: AsyncIterator[bytes]) -> bytes | None:
    return await anext(body, None)
