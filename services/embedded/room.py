"""What a machine has to have left for a stack: space and ports."""

import os
import secrets
import shutil
import socket
from pathlib import Path
from typing import Final

import psutil

from services.embedded.errors import StackError
from services.embedded.program import Part
from services.embedded.settings import (
    EDGE,
    HOST,
    KAFKA,
    KAFKA_CONTROLLER,
    METRICS,
    PAYMENTS,
    POSTGRES,
    REPLICA,
    VALKEY,
)

# Below the ports the kernel hands out to clients (32768 on Linux), one of which could come in between.
FREE_PORT_BASES: Final = range(10_000, 31_000)
_WORKERS: Final = (("PYTEST_XDIST_WORKER", "gw0"), ("PYTEST_XDIST_WORKER_COUNT", "1"))


def check_space(home: Path, min_free_bytes: int) -> None:
    """StackError unless the disk of `home` has as much room: a full one stops PostgreSQL in the middle of its work."""
    free = shutil.disk_usage(home).free
    if free < min_free_bytes:
        raise StackError(
            f"the disk that holds {home} is full: {free / 1e6:.0f} MB free, {min_free_bytes / 1e6:.0f} MB wanted",
            "Free some space, or move the state with ORDERS_HOME.",
        )


def check_ports(part: Part) -> None:
    """StackError when somebody listens on one of the part's ports."""
    for port in part.ports:
        if error := _taken(port):
            raise StackError(
                f"port {port} for {part.name} is taken{_owner(port)} ({error.strerror})",
                "Stop it, or set ORDERS_PORT_BASE to another range.",
            ) from error


def free_port_base() -> int:
    """A port base with nobody on any port that follows from it: for stacks that come and go, as tests and demos do.

    The workers of one test run (pytest-xdist) each have their own: two stacks that start at the same time would both
    find the same ports free.
    """
    offsets = [
        *range(PAYMENTS + 1),
        *(EDGE, POSTGRES, REPLICA, VALKEY, KAFKA, KAFKA_CONTROLLER),
        *range(METRICS, METRICS + 20),
    ]
    worker, workers = (int(os.environ.get(name, value).removeprefix("gw")) for name, value in _WORKERS)
    share = len(FREE_PORT_BASES) // workers
    mine = FREE_PORT_BASES[worker * share : (worker + 1) * share - max(offsets)]
    while True:
        base = secrets.choice(mine)
        if all(_taken(base + offset) is None for offset in offsets):
            return base


def _taken(port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT are in nobody's way
        try:
            probe.bind((HOST, port))
        except OSError as error:
            return error
    return None


def _owner(port: int) -> str:
    try:
        listening = psutil.net_connections("tcp")
        pid = next(one.pid for one in listening if one.status == psutil.CONN_LISTEN and one.laddr[1:] == (port,))
        return f" by {psutil.Process(pid).name()} (pid {pid})" if pid else ""
    except (psutil.Error, StopIteration, PermissionError):
        return ""  # somebody else's, and not ours to know
