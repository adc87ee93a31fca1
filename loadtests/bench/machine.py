"""What a figure depends on besides the code: the machine, the server's settings, and who has used how much CPU."""

import asyncio
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil

from services.embedded import postgres

ROOT: Final = Path(__file__).resolve().parents[2]
DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
_TOLD: Final = (*DURABLE, "server_version", "shared_buffers", "max_wal_size", "wal_level", "wal_sync_method")
_SYNC_METHOD: Final = "fdatasync"  # PostgreSQL's own on Linux
_SYNC_SECONDS: Final = "1"


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

    `sync_rate` takes seconds: how often a second 8 kB are safe on the disk of `directory`, by pg_test_fsync.
    """
    connection = await asyncpg.connect(postgres_url)
    try:
        server = {name: await connection.fetchval("SELECT current_setting($1)", name) for name in _TOLD}
    finally:
        await connection.close()
    if off := [name for name in DURABLE if server[name] != "on"]:
        raise NotDurableError(f"{', '.join(off)} must be on: figures of a server that may forget are not comparable")
    return {
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postgresql": server,
        "syncs_per_second": await _syncs_per_second(directory) if sync_rate else None,
    }


def _commit() -> str:
    """As git describes it; with a mark when files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],  # noqa: S607 # whichever git there is
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "not a checkout"


def _cpu_model() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


async def _syncs_per_second(directory: Path) -> float:
    """By PostgreSQL's program, which is ended once it has told what is asked: its other methods take it long."""
    file = directory / "pg_test_fsync"
    process = await asyncio.create_subprocess_exec(
        *(str(postgres.program("pg_test_fsync")), "-s", _SYNC_SECONDS, "-f", str(file)),
        stdout=asyncio.subprocess.PIPE,
    )
    if process.stdout is None:
        raise AssertionError("it was asked for")
    try:
        async for line in process.stdout:
            words = line.decode().split()
            if words[:1] == [_SYNC_METHOD] and "ops/sec" in words:
                return float(words[words.index("ops/sec") - 1])
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
        file.unlink(missing_ok=True)
    raise RuntimeError("pg_test_fsync has told nothing about fdatasync")
