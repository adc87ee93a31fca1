"""Stripe's own mock of its API (`make tools`): it knows every path and parameter, and keeps nothing."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

_DEFAULT = Path.home() / ".cache" / "order-backend" / "bin" / "stripe-mock"


@asynccontextmanager
async def running_stripe_mock() -> AsyncIterator[str]:
    """Its URL. A test that asks for it is skipped where it is not installed."""
    program = Path(os.environ.get("STRIPE_MOCK") or _DEFAULT)
    if not program.is_file():
        pytest.skip(f"there is no {program}: make tools")
    process = await asyncio.create_subprocess_exec(
        # Ports are the system's choice; it says which.
        *(str(program), "-http-addr", "127.0.0.1:", "-https-addr", "127.0.0.1:"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    said = b""
    try:
        async with asyncio.timeout(60):  # it reads a specification of 30 MB
            while not (found := re.search(rb"HTTP at address: (\S+)", said)):
                line = await process.stdout.readline()
                assert line, f"it ended: {said.decode()}"
                said += line
        draining = asyncio.create_task(process.stdout.read())  # so that it never waits for a reader
        yield f"http://{found[1].decode()}"
        process.terminate()
        await draining
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
