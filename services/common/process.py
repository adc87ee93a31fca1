"""How a process without HTTP lives: until it is told to stop, and never longer than its work does."""

import asyncio
import faulthandler
import signal
from collections.abc import Coroutine
from typing import Any, Final

import uvloop

BLOCKED_SECONDS: Final = 120.0  # the event loop did nothing at all: something blocks it, and nothing else would notice
LEAVE_SECONDS: Final = 15.0  # of a process that has failed, before it is ended with whatever hangs in it
STOP_SECONDS: Final = 6.0  # a little over what leaving a group is given


def run(main: Coroutine[Any, Any, None]) -> None:
    """`main` has ended. On the event loop that uvicorn takes too."""
    uvloop.run(main)


async def until_stopped(work: Coroutine[Any, Any, None]) -> None:
    """`work` ran until SIGTERM or SIGINT, and was cancelled; what it raises of itself is raised.

    Work that ends has failed in a way nobody foresaw: the process is to end, so that it is seen and started again. A
    process whose event loop is blocked ends too, with the stacks of its threads on stderr and exit code 1.
    """
    faulthandler.dump_traceback_later(BLOCKED_SECONDS, exit=True)  # before the work, which may block from its start
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    working = asyncio.create_task(work, name="work")
    stopped = asyncio.create_task(stop.wait(), name="stopped")
    turning = asyncio.create_task(_turning(), name="turning")
    await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
    while not working.done():
        working.cancel()  # told again, as aiokafka's closing may swallow a cancellation
        await asyncio.wait([working], timeout=STOP_SECONDS)
    stopped.cancel()
    turning.cancel()
    if working.cancelled():
        faulthandler.cancel_dump_traceback_later()
        return
    faulthandler.dump_traceback_later(LEAVE_SECONDS, exit=True)
    working.result()


async def _turning() -> None:
    """As long as the loop turns, its end is put off."""
    while True:
        faulthandler.dump_traceback_later(BLOCKED_SECONDS, exit=True)
        await asyncio.sleep(BLOCKED_SECONDS / 10)
