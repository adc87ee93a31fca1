"""The programs of `loadtests`, run as a person does: from the command line, on a stack that is there."""

import asyncio
import os
import sys
from pathlib import Path

from services.embedded.supervisor import Stack

CHECKOUT = Path(__file__).resolve().parents[2]


async def command_line(stack: Stack, program: str, *arguments: str, seconds: float) -> tuple[int, str]:
    """Exit code and output of `python -m loadtests.<program>` in the stack's home; killed after `seconds`."""
    home = {"ORDERS_HOME": str(stack.settings.home), "ORDERS_PORT_BASE": str(stack.settings.port_base)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"loadtests.{program}", *arguments),
        cwd=CHECKOUT,
        env=os.environ | home,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), seconds)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, output.decode()
