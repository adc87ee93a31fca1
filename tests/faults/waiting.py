"""Waiting for what other processes do: asked again and again until it is so, with a deadline."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(what: Callable[[], Awaitable[T]], said: str, *, seconds: float = 60, every: float = 0.02) -> T:
    """The first true answer of `what`; an AssertionError that tells the last one when there is none in time."""
    deadline = time.monotonic() + seconds
    while not (seen := await what()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {said}; last seen: {seen!r}"
        await asyncio.sleep(every)
    return seen
