"""What a figure depends on besides the code: the machine, the server's settings, and who has used how much CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

from loadtests import machine

DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
_TOLD: Final = (*DURABLE, "server_version", "shared_buffers", "max_wal_size", "wal_level", "wal_sync_method")


class NotDurableError(Exception):
    """The server may forget what it has acknowledged: its figures would be another system's."""


def cpu_of(pid: int) -> Callable[[], float]:
    """Gives the CPU seconds that the process and all its descendants have used so far, ended ones too."""
    root = psutil.Process(pid)

    def total() -> float:
        while True:
            before = root.cpu_times()
            used = before.user + before.system + before.children_user + before.children_system
            for child in root.children(recursive=True):
                try:
                    times = child.cpu_times()
                except psutil.NoSuchProcess:
                    break  # its time is its parent's by now
                used += times.user + times.system + times.children_user + times.children_system
            after = root.cpu_times()
            # A child that ended meanwhile would be missing, or counted twice.
            if (after.children_user, after.children_system) == (before.children_user, before.children_system):
                return used

    return total


def own_cpu() -> float:
    """CPU seconds of this process."""
    times = psutil.Process().cpu_times()
    return times.user + times.system


def programs_cpu() -> float:
    """CPU seconds of the programs this process has started and seen end."""
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system


async def facts(postgres_url: str, directory: Path, *, sync_rate: bool) -> dict[str, Any]:
    """What stands beside the figures. NotDurableError when the server does not sync.

    The machine's as `machine.described` tells them.
    """
    connection = await asyncpg.connect(postgres_url)
    try:
        server = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in _TOLD}
    finally:
        await connection.close()
    if off := [name for name in DURABLE if server[name] != "on"]:
        raise NotDurableError(f"{', '.join(off)} must be on: figures of a server that may forget are not comparable")
    return {
        **await machine.described(directory, sync_rate=sync_rate),
        "postgresql": server,
    }
