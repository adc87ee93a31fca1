"""Where a run was made: what its figures mean depends on it."""

import asyncio
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psutil

from services.embedded.errors import StackError
from services.embedded.postgres import program

ROOT: Final = Path(__file__).resolve().parents[1]
FSYNC_SECONDS: Final = 1  # the least it takes
_FDATASYNC: Final = re.compile(r"^\s+fdatasync\s+([\d.]+) ops/sec")


async def described(disk: Path, *, sync_rate: bool = True) -> dict[str, Any]:
    """Commit, processor, the memory we may use, load and Python; and how often `disk` syncs a page a second.

    None if nobody can tell that. It takes FSYNC_SECONDS or a little more, and is left out without `sync_rate`.
    """
    return {
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": min(psutil.virtual_memory().total, *memory_limits()),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg(),
        "fsyncs_per_second": await _fsyncs_per_second(disk) if sync_rate else None,
    }


def _commit() -> str:
    """With `+` when the checkout has changes; "unknown" outside of one."""
    described = ("git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*")
    try:
        done = subprocess.run(described, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def memory_limits(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that this process's control groups leave it, page cache included; none where there is no limit.

    cgroups(7): version 2 has one line with no controllers in it, version 1 one for each controller.
    """
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, path = line.split(":", maxsplit=2)
        if controllers not in {"", "memory"}:
            continue
        root = mounted / controllers
        limit = "memory.limit_in_bytes" if controllers else "memory.max"
        group = root / path.lstrip("/")
        for level in (group, *group.parents):
            if (
                level.is_relative_to(root)
                and (file := level / limit).exists()
                and (told := file.read_text()) != "max\n"
            ):
                yield int(told)


async def _fsyncs_per_second(disk: Path) -> float | None:
    """8 KiB by fdatasync, its default on Linux, as PostgreSQL's pg_test_fsync says; what it tries next is cut off."""
    try:
        tester = program("pg_test_fsync")
    except StackError:
        return None
    file = disk / "pg_test_fsync.out"
    process = await asyncio.create_subprocess_exec(
        *(str(tester), "-s", str(FSYNC_SECONDS), "-f", str(file)), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None  # noqa: S101 # as asked for
    try:
        async for line in process.stdout:
            if found := _FDATASYNC.search(line.decode()):
                return float(found[1])
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        file.unlink(missing_ok=True)
    return None
