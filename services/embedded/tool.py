"""Programs that are run once, to make what a server needs on disk."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.embedded.errors import StackError, from_log, log_position


async def run_tool(
    what: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str],
    directory: Path,
    remedy: str,
    **options: Any,
) -> None:
    """The command has done its work, its words are at the end of `log`. StackError, about `what`, when it could not."""
    log.parent.mkdir(parents=True, exist_ok=True)
    since = log_position(log)
    with log.open("ab") as output:
        try:
            tool = await asyncio.create_subprocess_exec(
                *command, env=env, cwd=directory, stdout=output, stderr=output, **options
            )
        except OSError as error:
            raise StackError(f"{command[0]} does not run ({error})", remedy) from error
        try:
            code = await tool.wait()
        except asyncio.CancelledError:
            tool.kill()
            await tool.wait()
            raise
    if code != 0:
        raise from_log(what, log, since)
