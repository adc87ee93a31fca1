"""What a supervisor writes down about its children, so that the next one can clean up after a killed one."""

import asyncio
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import structlog

from services.embedded.errors import StackError
from services.embedded.polling import becomes

_CLOCK_SECONDS = 2  # a start time counts from boot; a stepped clock moves it a little

log = structlog.get_logger()


@dataclass(frozen=True)
class Record:
    """A child, named so that a pid used again is not taken for it."""

    name: str
    pid: int
    created: float
    argv: list[str]
    stop_signal: int
    grace_seconds: float

    def process(self) -> psutil.Process | None:
        """It, when it still runs."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < _CLOCK_SECONDS
            # a script's command line begins with its interpreter; nginx's becomes one title, padded with blanks
            ours = " ".join(process.cmdline()).rstrip().endswith(" ".join(self.argv))
        except psutil.Error:
            return None
        return process if same and ours and process.status() != psutil.STATUS_ZOMBIE else None


@contextmanager
def only_supervisor(home: Path) -> Iterator[None]:
    """No other supervisor works on `home` meanwhile. The lock ends with us, however we end."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / "supervisor.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise StackError(
                f"another supervisor (pid {lock.read().strip() or 'unknown'}) runs on {home}",
                "Stop it, or set ORDERS_HOME and ORDERS_PORT_BASE for a second stack.",
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def write(home: Path, record: Record) -> None:
    """The record is on disk, whole."""
    write_json(home / "run" / f"{record.name}.json", asdict(record))


def forget(home: Path, name: str) -> None:
    """The child has ended."""
    (home / "run" / f"{name}.json").unlink(missing_ok=True)


async def end_former(home: Path) -> None:
    """No child that a former supervisor has recorded runs any more. Nothing else is touched."""

    (home / "endpoints.json").unlink(missing_ok=True)
    written = {path: _read(path) for path in (home / "run").glob("*.json")}
    await asyncio.gather(*(_end(record) for record in written.values() if record))
    for path in written:
        path.unlink()


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        return None  # of another version; ports and locks are looked at all the same


async def _end(record: Record) -> None:
    def gone() -> bool:
        return record.process() is None

    if process := record.process():
        log.warning("left_over", name=record.name, pid=record.pid)
        with suppress(psutil.NoSuchProcess):
            process.send_signal(record.stop_signal)
            if not await becomes(gone, record.grace_seconds):
                process.kill()
                await becomes(gone, record.grace_seconds)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """`path` holds `content`, readable by its owner only; a reader sees the old or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(path)
