"""A process without HTTP ends when it is told to, when its work fails, and when something blocks its event loop."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

PROGRAM = """
import asyncio, sys, time
from services.common import process
process.BLOCKED_SECONDS = process.LEAVE_SECONDS = float(sys.argv[2])

async def waits():
    print("begun", flush=True)
    await asyncio.Event().wait()

async def blocks():
    time.sleep(3600)

async def fails_and_hangs():
    async def hangs():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
    global hanging
    hanging = asyncio.create_task(hangs())
    await asyncio.sleep(0)
    raise RuntimeError("it has failed")

asyncio.run(process.until_stopped(globals()[sys.argv[1]]()))
"""


@contextmanager
def _run(work: str, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    running = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, work, str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with running:
        try:
            yield running
        finally:
            running.kill()  # nothing, when it has ended as it should


def test_it_ends_cleanly_when_told_to() -> None:
    with _run("waits", 60) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "begun\n"
        running.send_signal(signal.SIGTERM)
        _, errors = running.communicate(timeout=30)
    assert (running.returncode, errors) == (0, "")


@pytest.mark.parametrize("work", ["blocks", "fails_and_hangs"])
def test_what_hangs_in_it_does_not_keep_it(work: str) -> None:
    with _run(work, 1) as running:
        _, errors = running.communicate(timeout=30)
    assert running.returncode == 1
    assert "Timeout" in errors
    assert work in errors or "asyncio" in errors, "where it hung"
