"""What libraries log: a line that repeats is bounded, none of another kind is lost, and ours are never touched."""

import logging
import subprocess
import sys

import orjson

from services.common.log import REPEATED_SECONDS, _dumps, _Repeated


def _record(text: str, error: Exception | None = None) -> logging.LogRecord:
    info = (type(error), error, None) if error else None
    return logging.LogRecord("aiokafka", logging.ERROR, "client.py", 1, "%s", (text,), info)


def test_a_line_passes_once_in_some_seconds_and_then_tells_how_many_were_left_out() -> None:
    now = 0.0
    repeated = _Repeated(lambda: now)
    assert repeated.filter(_record("no broker"))
    assert [repeated.filter(_record("no broker")) for _ in range(30)] == [False] * 30
    now += REPEATED_SECONDS
    told = _record("no broker")
    assert repeated.filter(told)
    assert told.getMessage() == "no broker (30 more like this were left out)"
    now += REPEATED_SECONDS
    again = _record("no broker")
    assert repeated.filter(again)
    assert again.getMessage() == "no broker"


def test_another_line_and_another_error_pass_at_once() -> None:
    repeated = _Repeated(lambda: 0.0)
    lines = [_record("one"), _record("two"), _record("one", ValueError("a")), _record("one", ValueError("b"))]
    assert [repeated.filter(line) for line in lines] == [True] * 4


def test_our_own_lines_all_pass_in_a_process() -> None:
    code = (
        "import logging, structlog; from services.common import log; log.configure('test')\n"
        "for _ in range(50): logging.getLogger('aiokafka').error('away'); structlog.get_logger().info('ours')"
    )
    lines = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, check=True).stderr.splitlines()
    events = [orjson.loads(line)["event"] for line in lines]
    assert (events.count("away"), events.count("ours")) == (1, 50)


def test_a_line_is_written_whatever_is_told_in_it() -> None:
    assert orjson.loads(_dumps({"event": "e", "offsets": {3: 17}, "of": object, 2: b"x"}))["offsets"] == {"3": 17}
