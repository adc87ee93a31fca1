"""Waiting for what nobody tells us about: a server's readiness, another's child."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

_POLL_SECONDS = 0.03


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """It has been true once."""
    while not await true():
        await asyncio.sleep(_POLL_SECONDS)


async def becomes(true: Callable[[], bool], within_seconds: float) -> bool:
    """Whether it has been true once in that time."""

    async def asked() -> bool:
        return true()

    with suppress(TimeoutError):
        await asyncio.wait_for(until(asked), within_seconds)
        return True
    return False
