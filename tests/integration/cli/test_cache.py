"""`orders cache` on what a process really counts: this one, which reads a real cache and shows its metrics."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import start_http_server
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.common import caches
from services.common.cache_watch import BOUND_SECONDS
from services.common.cached import Entry, Key
from services.contracts.cache import INVENTORY
from tests.conftest import free_port
from tests.consuming import metric
from tests.faults.waiting import eventually


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a stack that runs, as far as one can see from here."""
    monkeypatch.setenv("ORDERS_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
async def metrics_url(valkey_url: str) -> AsyncIterator[str]:
    """Of this process, which has an L1."""
    cache, key = caches.cache(valkey_url), Key(INVENTORY, "01M8303YZZEAGTJEC4GVGEW1GM")
    assert cache is not None

    async def load() -> Entry:
        return Entry("", 1, b"{}")

    async def hit() -> bool:
        before = metric("cache_l1_requests_total", kind="inventory", outcome="hit")
        await cache.read(key, load, reader=None)
        return metric("cache_l1_requests_total", kind="inventory", outcome="hit") > before

    await cache.invalidate({key: 1})
    await eventually(hit, "a hit of L1")
    server, thread = start_http_server(0, addr="127.0.0.1")
    yield f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()
    await cache.close()


def asked(home: Path, metrics: dict[str, str], *options: str) -> Result:
    (home / "endpoints.json").write_text(json.dumps({"metrics": metrics}))
    return CliRunner().invoke(app, ["cache", *options])


def shown(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_json_says_what_the_metrics_say(home: Path, metrics_url: str) -> None:
    result = asked(home, {"orders-api": metrics_url}, "--json")
    assert result.exit_code == 0, result.stderr
    report = shown(result)
    process = report["processes"]["orders-api"]
    stock = process["kinds"]["inventory"]
    assert stock["hits"] == metric("cache_requests_total", kind="inventory", outcome="hit") > 0
    assert stock["fills_stored"] == metric("cache_fills_total", kind="inventory", outcome="stored") > 0
    assert 0 < stock["hit_ratio"] < 1
    assert stock["l1"]["hits"] == metric("cache_l1_requests_total", kind="inventory", outcome="hit") > 0
    assert stock["l1"]["entries"] == 1
    assert stock["l1"]["bytes"] > 0
    assert process["invalidations"]["sent"] == metric("cache_invalidations_total", outcome="sent") > 0
    assert process["breaker"] == "closed"
    assert report["bounds_seconds"] == {
        "nothing_failed": 0.0,
        "not_told_by_the_writer": 0.25,
        "l1": BOUND_SECONDS,
        "ttl": {"order": 30.0, "inventory": 15.0, "product": 300.0},
    }
    assert report["not_answering"] == {}


def test_a_person_sees_the_same_in_tables(home: Path, metrics_url: str) -> None:
    result = asked(home, {"orders-api": metrics_url})
    assert result.exit_code == 0, result.stderr
    assert "L1 hits" in result.stdout
    assert "closed" in result.stdout
    assert "its TTL, 15 s" in result.stdout


def test_who_does_not_answer_is_named_and_the_others_are_shown(home: Path, metrics_url: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/metrics"
    result = asked(home, {"orders-api": metrics_url, "outbox-relay": nowhere}, "--json")
    assert result.exit_code == 2
    assert list(shown(result)["processes"]) == ["orders-api"]
    assert list(shown(result)["not_answering"]) == ["outbox-relay"]
    assert "outbox-relay does not answer" in result.stderr


def test_without_a_stack_it_says_how_to_start_one(home: Path) -> None:
    result = CliRunner().invoke(app, ["cache"])
    assert result.exit_code == 2
    assert f"No stack runs in {home}" in result.stderr


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"metrics": 1}'])
def test_an_endpoints_file_that_is_not_one_is_refused_by_its_name(home: Path, content: str) -> None:
    (home / "endpoints.json").write_text(content)
    result = CliRunner().invoke(app, ["cache"])
    assert result.exit_code == 2
    assert "endpoints.json does not say where" in result.stderr
