"""What stops a stack from starting, in words a person can act on."""

import errno
from pathlib import Path

_TAIL_BYTES = 8192  # the end of a log is enough: servers say why they end in their last lines
_FULL_DISK = ("No space left on device", "Disk quota exceeded")
_TELLING = ("FATAL", "PANIC", "ERROR", "Error", "Exception", "error:")


class StackError(Exception):
    """The stack cannot run: `message` says in one line what is wrong, `remedy` what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


def disk_full(where: Path) -> StackError:
    """The file system of `where` has no room."""
    return StackError(f"the disk that holds {where} is full", "Free some space, or move the state with ORDERS_HOME.")


def from_system(home: Path, error: OSError) -> StackError:
    """What the operating system refuses us, mostly room or rights in `home`."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return disk_full(home)
    if isinstance(error, PermissionError):
        return StackError(f"{home} belongs to another user ({error})", "Start as that user, or set ORDERS_HOME.")
    return StackError(str(error), f"The state is in {home}.")


def log_position(log: Path) -> int:
    """Where the next line of `log` will begin."""
    return log.stat().st_size if log.exists() else 0


def from_log(what: str, log: Path, since: int = 0) -> StackError:
    """What the log says, from byte `since` on, about the end of `what`: a full disk, else its last line of trouble."""
    size = log_position(log)
    with log.open("rb") as stream:
        stream.seek(max(since, size - _TAIL_BYTES))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    if any(sign in line for line in lines for sign in _FULL_DISK):
        return disk_full(log)
    telling = [line for line in lines if any(sign in line for sign in _TELLING)] or lines or ["it wrote nothing"]
    return StackError(f"{what}: {telling[-1][:300]}", f"Its log is {log}.")
