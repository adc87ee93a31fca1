"""Structured logs: one JSON object a line on stderr, with whatever the request has bound (request id, trace)."""

import logging
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Final

import orjson
import stamina
import structlog

REPEATED_SECONDS: Final = 10.0
_LINES_MAX: Final = 1_000  # different lines that are remembered

# What every line of a request carries. One variable set once: binding each by structlog costs several microseconds.
request_context: ContextVar[Mapping[str, str]] = ContextVar("request_context", default=MappingProxyType({}))


def configure(process: str, level: str = "INFO") -> None:
    """Route structlog and the standard library's logging to JSON lines that carry `process`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        _merge_request,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]
    structlog.contextvars.bind_contextvars(process=process)
    stamina.instrumentation.set_on_retry_hooks([])  # whoever retries says so once, and counts
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=_dumps)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_dumps),
            ],
        )
    )
    handler.addFilter(_Repeated())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if level == "INFO" else level)


class _Repeated(logging.Filter):
    """A line that a library repeats passes once in REPEATED_SECONDS, and then says how often it was left out.

    aiokafka writes some thirty a second while a broker is away. Our own lines never come here.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._passed: OrderedDict[tuple[str, int, str, str], tuple[float, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        line = (record.name, record.levelno, record.getMessage(), repr(error))
        now = self._monotonic()
        passed_at, left_out = self._passed.get(line, (float("-inf"), 0))
        if now - passed_at < REPEATED_SECONDS:
            self._passed[line] = (passed_at, left_out + 1)
            return False
        self._passed[line] = (now, 0)
        self._passed.move_to_end(line)
        if len(self._passed) > _LINES_MAX:
            self._passed.popitem(last=False)
        if left_out:
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like this were left out)", ()
        return True


def _merge_request(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    for name, value in request_context.get().items():
        event.setdefault(name, value)
    return event


def _dumps(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()  # a line in the log ends nobody
