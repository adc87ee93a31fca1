"""What dies comes back; what a killed supervisor leaves is cleaned up by the next one."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from itertools import pairwise
from pathlib import Path

import asyncpg
import psutil
import pytest

from services.embedded.processes import Process
from services.embedded.program import answers
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.waiting import eventually

_SERVE = (
    "import http.server as h, os;"
    "h.ThreadingHTTPServer(('127.0.0.1', int(os.environ['ORDERS_PORT'])), h.SimpleHTTPRequestHandler).serve_forever()"
)
_HTTP = (sys.executable, "-c", _SERVE)
_API = Process("some-api", argv=_HTTP, port=0, ready_path="/", endpoint="orders")

_SUPERVISOR = f"""
import asyncio
from services.embedded.processes import Process
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack, stop_on_signals
async def run():
    with stop_on_signals():
        async with Stack(StackSettings(), processes=({_API!r},), durable=False):
            await asyncio.Event().wait()
asyncio.run(run())
"""


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(home=tmp_path / "home", port_base=free_port_base(), kafka_url="127.0.0.1:1")


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def _supervisor(settings: StackSettings) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "ORDERS_HOME": str(settings.home),
        "ORDERS_PORT_BASE": str(settings.port_base),
        "ORDERS_KAFKA_URL": str(settings.kafka_url),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _SUPERVISOR, env=environment)

    async def up() -> bool:
        assert process.returncode is None
        return (settings.home / "endpoints.json").exists()

    await eventually(up, "the supervisor is up")
    return process


async def test_each_part_that_is_killed_is_back_at_its_port_with_its_data(settings: StackSettings) -> None:
    async with Stack(settings, processes=(_API,), durable=False) as stack:
        connection = await asyncpg.connect(stack.addresses.postgres)
        await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        await connection.close()
        for name in ("some-api", "valkey", "postgres"):
            former, killed_at = stack.pid(name), time.monotonic()
            await stack.kill(name)
            await stack.ready(name, timeout_seconds=10)
            assert time.monotonic() - killed_at < 2, f"{name}: a restart is due within 1 s, it starts in less than 1 s"
            assert stack.pid(name) not in {None, former}
        assert stack.restarts == {"postgres": 1, "valkey": 1, "some-api": 1}
        assert await answers(settings.port_base, "/")
        connection = await asyncpg.connect(stack.addresses.postgres)
        assert await connection.fetchval("SELECT answer FROM kept") == 42
        await connection.close()


async def test_kafka_that_is_killed_is_back_before_its_default_session_would_end(tmp_path: Path) -> None:
    settings = StackSettings(home=tmp_path, port_base=free_port_base(), valkey_url="redis://127.0.0.1:1")
    async with Stack(settings, processes=(), durable=False) as stack:
        killed_at = time.monotonic()
        await stack.kill("kafka")
        await stack.ready("kafka", timeout_seconds=30)
        assert time.monotonic() - killed_at < 9


async def test_who_keeps_dying_is_started_ever_later(settings: StackSettings, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    short_lived = (sys.executable, "-c", f"import time; open({str(starts)!r}, 'a').write(f'{{time.time()}}\\n')")
    immediately_ready = Process("short-lived", argv=(*short_lived,))
    async with Stack(settings, processes=(), durable=False):
        pass  # the cluster exists, what follows is about time
    async with Stack(settings, processes=(immediately_ready,), durable=False) as stack:

        async def started_five_times() -> bool:
            return starts.exists() and len(starts.read_text().split()) >= 5

        await eventually(started_five_times, "it was started five times")
        assert stack.restarts["short-lived"] >= 4
    times = [float(line) for line in starts.read_text().split()]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert waits[0] < 1
    for wait, at_least in zip(waits, (0.2, 0.4, 0.8, 1.6), strict=False):
        assert wait >= at_least


async def test_a_killed_supervisor_leaves_nothing_that_hinders_the_next(settings: StackSettings) -> None:
    first = await _supervisor(settings)
    endpoints = json.loads((settings.home / "endpoints.json").read_text())
    records = {path.stem: json.loads(path.read_text()) for path in (settings.home / "run").glob("*.json")}
    assert set(records) == {"postgres", "valkey", "some-api"}
    connection = await asyncpg.connect(endpoints["postgres"])  # still there when it is stopped: a fast one is needed
    first.kill()
    await first.wait()
    pids = [record["pid"] for record in records.values()]
    assert all(_runs(pid) for pid in pids)  # orphans, all of them

    async with Stack(settings, processes=(_API,), durable=False) as stack:
        assert not any(_runs(pid) for pid in pids)
        assert stack.endpoints == endpoints
        assert await answers(settings.port_base, "/")
        await connection.close()
    assert not list((settings.home / "run").glob("*.json"))


async def test_a_postmaster_that_nobody_has_recorded_is_stopped_before_a_second_one_starts(
    settings: StackSettings,
) -> None:
    first = await _supervisor(settings)
    record = json.loads((settings.home / "run" / "postgres.json").read_text())
    first.kill()
    await first.wait()
    (settings.home / "run" / "postgres.json").unlink()  # killed between its start and its record
    async with Stack(settings, processes=(), durable=False) as stack:
        assert not _runs(record["pid"])
        assert stack.pid("postgres") != record["pid"]


async def test_a_stranger_whose_pid_is_in_a_record_is_left_alone(settings: StackSettings) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "600")
    (settings.home / "run").mkdir(parents=True)
    created = psutil.Process(stranger.pid).create_time()
    record: dict[str, object] = {"name": "some-api", "pid": stranger.pid, "created": created, "argv": ["sleep", "600"]}
    record |= {"stop_signal": signal.SIGTERM, "grace_seconds": 1}
    (settings.home / "run" / "older.json").write_text(json.dumps(record | {"created": created - 3600}))
    (settings.home / "run" / "other.json").write_text(json.dumps(record | {"argv": ["orders-api"]}))
    (settings.home / "run" / "unreadable.json").write_text("{")
    async with Stack(settings, processes=(), durable=False):
        assert stranger.returncode is None
        assert psutil.Process(stranger.pid).is_running()
    stranger.kill()
    await stranger.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_everything_cleanly(settings: StackSettings, number: signal.Signals) -> None:
    supervisor = await _supervisor(settings)
    children = psutil.Process(supervisor.pid).children(recursive=True)
    supervisor.send_signal(number)
    assert await asyncio.wait_for(supervisor.wait(), 60) == 0
    assert not [child for child in children if child.is_running()]
    assert not (settings.home / "endpoints.json").exists()
    assert "database system is shut down" in (settings.home / "log" / "postgres.log").read_text()
    with socket.create_server(("127.0.0.1", settings.port_base)):
        pass  # its port is free


async def test_a_process_that_does_not_end_is_killed_after_its_grace(settings: StackSettings) -> None:
    deaf = (sys.executable, "-c", f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SERVE}")
    process = Process("deaf", argv=deaf, port=0, ready_path="/", grace_seconds=0.3)
    async with Stack(settings, processes=(process,), durable=False) as stack:
        pid = stack.pid("deaf")
        assert pid
    assert not psutil.pid_exists(pid)


async def test_processes_are_told_where_everything_is_but_not_the_owners_password(
    settings: StackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_ROLE_PASSWORD", "secret")
    seen = tmp_path / "environment.json"
    told = (
        sys.executable,
        "-c",
        f"import json, os, time; json.dump(dict(os.environ), open({str(seen)!r}, 'w')); time.sleep(60)",
    )
    process = Process("told", argv=told, role="orders_api")
    async with Stack(settings, processes=(process,), durable=False) as stack:

        async def written() -> bool:
            return seen.exists() and seen.stat().st_size > 0

        await eventually(written, "it is written")
        environment = json.loads(seen.read_text())
        assert environment["ORDERS_POSTGRES_URL"] == stack.addresses.postgres_as("orders_api")
        assert environment["ORDERS_POSTGRES_URL"].startswith("postgresql://orders_api@/orders?host=")
        assert environment["ORDERS_HOME"] == str(settings.home)
        assert environment["ORDERS_KAFKA_URL"] == "127.0.0.1:1"
        assert "ORDERS_ROLE_PASSWORD" not in environment
