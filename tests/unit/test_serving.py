"""What tests serve in their own process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette

from tests.serving import serving


async def test_what_cannot_start_fails_the_test_that_wants_it_and_nothing_else() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with pytest.raises(AssertionError, match="could not start"):
        async with serving(Starlette(lifespan=lifespan)):
            pass
