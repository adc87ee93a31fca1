"""The commands a person starts with, as a person starts them: `orders demo`, `up`, `tail` and `token`.

And each process on its own: without the code of the others.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

import services
from services.common.stream import reading
from services.contracts.envelope import CATALOG_TOPIC
from services.embedded.edge import nginx
from services.embedded.errors import StackError
from services.embedded.program import answers
from services.embedded.room import free_port_base
from services.embedded.settings import KAFKA
from tests.conftest import AsRole
from tests.faults.waiting import eventually

_ORDERS = Path(sys.executable).with_name("orders")
_PACKAGE = Path(services.__file__).parent
_START_SECONDS = 60.0
_STOP_SECONDS = 40.0


@dataclass
class Home:
    """A home and ports of its own, and the `orders` command on them."""

    path: Path
    port_base: int

    @property
    def environment(self) -> dict[str, str]:
        """What the command is told."""
        own = {"ORDERS_HOME": str(self.path), "ORDERS_PORT_BASE": str(self.port_base)}
        return {**{name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}, **own}

    async def orders(self, *arguments: str, seconds: float = _START_SECONDS) -> tuple[int, str, str]:
        """Exit code, standard output and standard error of `orders` with these arguments."""
        process = await asyncio.create_subprocess_exec(
            *(str(_ORDERS), *arguments),
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), seconds)
        return process.returncode or 0, out.decode(), err.decode()

    def processes(self) -> list[str]:
        """Command lines of whatever runs for this home, by its arguments, environment or directory."""
        found = []
        for process in psutil.process_iter():
            try:
                told = " ".join([*process.cmdline(), process.cwd(), process.environ().get("ORDERS_HOME", "")])
                if str(self.path) in told and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        """No process, no port, no lock, no record, no endpoints."""
        assert self.processes() == []
        for offset in (0, 1, 2, 3, 4, 5, 6, 80, 1032, 1079, 1092, 1093, *range(1100, 1108)):
            with socket.create_server(("127.0.0.1", self.port_base + offset)):
                pass
        assert not (self.path / "endpoints.json").exists()
        assert not list((self.path / "run").glob("*.json"))
        assert not (self.path / "postgres" / "postmaster.pid").exists()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", free_port_base())


async def test_the_demo_takes_an_order_to_delivered_twice_and_leaves_nothing_running(home: Home) -> None:
    orders = []
    for _ in range(2):  # the second time on what the first has left
        code, out, err = await home.orders("demo")
        assert code == 0, err
        for step in ("Offered", "Stocked", "Placed", "Shipped", "Delivered", "Paid", "Captured"):
            assert step in out
        rows = re.findall(r"(\d)\W+(order\.\w+)", out)
        steps = [("1", "order.placed"), ("2", "order.shipped"), ("3", "order.delivered")]
        assert rows == steps * 2, out  # on Kafka, then over WebSocket
        found = re.search(r"Placed\s+([0-9A-HJKMNP-TV-Z]{26})", out)
        assert found, out
        orders.append(found[1])
        assert "Traceback" not in err
        home.assert_nothing_is_left()
    assert len(set(orders)) == 2


@asynccontextmanager
async def _up(home: Home, *flags: str) -> AsyncIterator[tuple[dict[str, Any], str]]:
    """`orders up` in the foreground, with its endpoints and all it printed; then SIGTERM, which ends it cleanly."""
    printed, log = bytearray(), home.path.with_name("up.log")
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *(str(_ORDERS), "up", *flags), env=home.environment, stdout=asyncio.subprocess.PIPE, stderr=output
        )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            while b"Stop: Ctrl-C" not in printed:
                line = await process.stdout.readline()
                assert line, f"it ended with {await process.wait()}: {log.read_text()}"
                printed += line
        yield json.loads((home.path / "endpoints.json").read_text()), printed.decode()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), _STOP_SECONDS) == 0
    finally:
        if process.returncode is None:
            process.terminate()  # a supervisor that is killed leaves its servers running
            await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    home.assert_nothing_is_left()


async def _pasted(line: str) -> Any:
    """What a line gives in a shell."""
    shell = await asyncio.create_subprocess_exec(
        *("bash", "-c", line), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(shell.communicate(), 60)
    assert shell.returncode == 0, err
    return json.loads(out)


async def _a_product_reaches_kafka(home: Home, endpoints: dict[str, Any]) -> None:
    code, out, err = await home.orders("token", "--scope", "catalog:write")
    assert code == 0, err
    path = "/v1/products/01JD5Q0000E2WXGF4K4Z7D3M5T"
    async with httpx.AsyncClient(base_url=endpoints["catalog"], timeout=30) as client:
        teapot = {"name": "Teapot", "price": 1999, "currency": "USD", "active": True}
        put = await client.put(path, json=teapot, headers={"Authorization": f"Bearer {out.strip()}"})
        assert put.status_code == 201, put.text
        assert (await client.get(path)).json() == put.json()
    async with asyncio.timeout(60), reading(endpoints["kafka"], CATALOG_TOPIC, from_beginning=True) as messages:
        events = (json.loads(message.value) async for message in messages)
        event = await anext(event async for event in events if path.endswith(event["product_id"]))
    assert event["data"] == {"product": put.json()}


async def _an_order_is_sent_to_an_address_of_its_buyers(home: Home, endpoints: dict[str, Any], product: str) -> None:
    code, out, err = await home.orders("token", "--scope", "profile orders:read orders:write")
    assert code == 0, err
    headers = {"Authorization": f"Bearer {out.strip()}", "Idempotency-Key": "sent"}
    async with httpx.AsyncClient(base_url=endpoints["customers"], headers=headers, timeout=30) as client:
        started = await client.patch("/v1/me", json={"name": "Ada"}, headers={"If-Match": '"1"'})
        assert started.status_code == 200, started.text
        square = {"name": "Ada", "lines": ["St James's Square 12"], "city": "London", "country": "GB"}
        added = await client.post("/v1/me/addresses", json=square)
        assert added.status_code == 201, added.text
        address_id = added.json()["address_id"]
        found = (await client.get("/v1/me/export")).json()["orders"]["href"]
    async with httpx.AsyncClient(headers=headers, timeout=30) as client:
        body = {"currency": "USD", "items": [{"product_id": product, "quantity": 1}], "shipping_address_id": address_id}
        placed = await client.post(f"{endpoints['orders']}/v1/orders", json=body)
        assert placed.json()["shipping_address_id"] == address_id, placed.text
        # Where the export says that they are.
        assert (await client.get(found)).json()["data"] == [placed.json()]


async def _an_order_is_watched_to_its_end(home: Home, endpoints: dict[str, Any], order: dict[str, Any]) -> None:
    watching = asyncio.create_task(home.orders("watch", order["order_id"], "--json"))
    code, token, err = await home.orders("token", "--scope", "orders:read orders:read:any orders:fulfil")
    assert code == 0, err
    headers = {"Authorization": f"Bearer {token.strip()}"}
    path = f"/v1/orders/{order['order_id']}"
    async with httpx.AsyncClient(base_url=endpoints["orders"], headers=headers, timeout=30) as client:
        cancelled = await client.post(
            f"{path}/cancel", json={}, headers={"Idempotency-Key": "watched", "If-Match": '"1"'}
        )
        assert cancelled.status_code == 200, cancelled.text
        expected = (await client.get(f"{path}/events")).json()["data"]
    code, out, err = await watching
    assert code == 0, err
    assert [json.loads(line) for line in out.splitlines()] == expected

    code, out, err = await home.orders("watch", "01JD5Q0000E2WXGF4K4Z7D3M5T")
    assert (code, out) == (1, "")
    assert err.startswith("not_found: ")


async def _the_cache_is_looked_into(home: Home) -> None:
    code, out, err = await home.orders("cache", "--json")
    assert code == 0, err
    cached = json.loads(out)
    assert {"orders-api", "orders-maintenance", "orders-projector", "outbox-relay"} <= set(cached["processes"])
    stock = cached["processes"]["orders-api"]["kinds"]["inventory"]
    assert stock["misses"] >= 1
    assert stock["l1"] is not None
    assert cached["waiting"] is not None


def _with_nginx() -> tuple[str, ...]:
    """The flag that starts an edge, where nginx is or has to be."""
    try:
        nginx()
    except StackError:
        return ("--edge",) if os.environ.get("REQUIRE_ALL") == "1" else ()
    return ("--edge",)


async def _an_order_is_followed_through_the_edge(
    endpoints: dict[str, Any], order: dict[str, Any], headers: dict[str, str]
) -> None:
    if "edge" not in endpoints:
        return
    async with httpx.AsyncClient(base_url=endpoints["edge"], timeout=30) as client:
        said = [(await client.get("/v1/products")).headers["cache-status"] for _ in range(2)]
        assert said == ["edge; fwd=uri-miss", "edge; hit"]
        assert (await client.get(f"/v1/orders/{order['order_id']}", headers=headers)).json() == order
        page = (await client.get("/")).text
        for name in re.findall(r'(?:href|src)="([^"]+)"', page):
            assert "immutable" in (await client.get(f"/{name}")).headers["cache-control"]
    token = headers["Authorization"].removeprefix("Bearer ")
    protocols = [Subprotocol("orders.v1"), Subprotocol(f"bearer.{token}")]
    url = endpoints["edge"].replace("http", "ws") + "/v1/stream"
    async with asyncio.timeout(60), connect(url, subprotocols=protocols) as socket:
        await socket.send(json.dumps({"subscribe": {"order_id": order["order_id"], "after_version": 0}}))
        assert "subscribed" in json.loads(await socket.recv())
        assert json.loads(await socket.recv())["type"] == "order.placed"


async def test_up_serves_what_it_prints_stops_on_sigterm_and_keeps_its_data(home: Home) -> None:
    async with _up(home) as (endpoints, printed):
        base = home.port_base
        for offset, name in (
            (0, "orders"),
            (1, "catalog"),
            (2, "customers"),
            (4, "issuer"),
            (5, "provider"),
            (6, "payments"),
        ):
            assert endpoints[name] == f"http://127.0.0.1:{base + offset}"
        assert endpoints["realtime"] == f"ws://127.0.0.1:{base + 3}"
        assert endpoints["valkey"].startswith(f"redis://127.0.0.1:{base + 1079}")
        assert endpoints["kafka"] == f"127.0.0.1:{base + KAFKA}"
        assert endpoints["postgres"].startswith("postgresql://orders_inspect:")
        ours = {"orders-api", "catalog-api", "customers-api", "outbox-relay", "orders-maintenance", "orders-projector"}
        assert ours | {"realtime-gateway", "payments-worker"} <= set(endpoints["metrics"])
        async with httpx.AsyncClient(timeout=30) as client:
            for name, url in endpoints["metrics"].items():
                assert f'process_info{{process="{name}"}}' in (await client.get(url)).text
            assert f"{endpoints['orders']}/docs" in printed
            assert (await client.get(f"{endpoints['orders']}/docs")).status_code == 200
        running = " ".join(home.processes())
        for name in (
            "orders-api",
            "catalog-api",
            "customers-api",
            "outbox-relay",
            "orders-maintenance",
            "orders-projector",
            "realtime-gateway",
            "token-issuer",
            "payments-sandbox",
            "payments-worker",
        ):
            assert name in running, "a process shows its name in its command line"

        place, listing, stock = [line for line in printed.splitlines() if line.startswith("curl ")]
        order = await _pasted(place)
        assert order["status"] == "confirmed"
        assert [one["order_id"] for one in (await _pasted(listing))["data"]] == [order["order_id"]]
        product = order["items"][0]["product_id"]
        assert (await _pasted(stock))["reserved"] == 1
        await _the_cache_is_looked_into(home)

        code, out, err = await home.orders("token", "--sub", order["user_id"], "--scope", "orders:read orders:write")
        assert code == 0, err
        headers = {"Authorization": f"Bearer {out.strip()}"}
        async with httpx.AsyncClient(base_url=endpoints["orders"], headers=headers, timeout=30) as client:
            assert (await client.get(f"/v1/orders/{order['order_id']}")).json() == order
            body = {"currency": "USD", "items": [{"product_id": product, "quantity": 1}]}
            second = await client.post("/v1/orders", json=body, headers={"Idempotency-Key": "e2e"})
            assert second.status_code == 201
            events = (await client.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]

        await _a_product_reaches_kafka(home, endpoints)
        code, out, err = await home.orders("tail", "--from-beginning", "--json", "--count", "2")
        assert code == 0, err
        lines = [json.loads(line) for line in out.splitlines()]
        assert {line["order_id"] for line in lines} == {order["order_id"], second.json()["order_id"]}
        assert [line for line in lines if line["order_id"] == order["order_id"]] == events

    async with _up(home, *_with_nginx()) as (again, _):
        assert {name: url for name, url in again.items() if name != "edge"} == endpoints
        await _an_order_is_followed_through_the_edge(again, order, headers)
        async with httpx.AsyncClient(base_url=again["orders"], headers=headers, timeout=30) as client:
            assert (await client.get(f"/v1/orders/{order['order_id']}")).json() == order
            replay = await client.post("/v1/orders", json=body, headers={"Idempotency-Key": "e2e"})
            assert (replay.status_code, replay.content) == (201, second.content)
            assert replay.headers["idempotency-replayed"] == "true"
        code, out, _ = await home.orders("tail", "--from-beginning", "--json", "--count", "2")
        again_lines = [json.loads(line) for line in out.splitlines()]
        assert {line["event_id"] for line in again_lines} == {line["event_id"] for line in lines}
        await _an_order_is_watched_to_its_end(home, again, order)
        await _an_order_is_sent_to_an_address_of_its_buyers(home, again, product)


@dataclass(frozen=True)
class Alone:
    """A process: its entry, the folders of `services` it may have, its database role, and where it answers."""

    entry: str
    folders: tuple[str, ...]
    role: str | None
    path: str
    on_metrics_port: bool = False


ALONE = {
    "orders-api": Alone("services.orders.api", ("orders", "common", "contracts"), "orders_api", "/readyz"),
    "catalog-api": Alone("services.catalog.api", ("catalog", "common", "contracts"), "catalog_api", "/readyz"),
    "customers-api": Alone("services.customers.api", ("customers", "common", "contracts"), "customers_api", "/readyz"),
    "orders-maintenance": Alone(
        "services.orders.maintenance", ("orders", "common", "contracts"), "orders_maintenance", "/metrics", True
    ),
    "orders-projector": Alone(
        "services.orders.projector", ("orders", "common", "contracts"), "orders_projector", "/metrics", True
    ),
    "outbox-relay": Alone("services.relay.main", ("relay", "common", "contracts"), "outbox_relay", "/metrics", True),
    "realtime-gateway": Alone("services.realtime.api", ("realtime", "common", "contracts"), None, "/healthz"),
    "token-issuer": Alone(
        "services.embedded.issuer", ("embedded", "common", "contracts"), None, "/.well-known/openid-configuration"
    ),
    "payments-worker": Alone(
        "services.payments.worker", ("payments", "common", "contracts"), "payments_worker", "/readyz"
    ),
    "payments-sandbox": Alone(
        "services.embedded.payments_sandbox", ("embedded", "common", "contracts"), None, "/healthz"
    ),
}


@pytest.mark.parametrize("name", list(ALONE))
async def test_a_process_starts_with_the_folders_of_the_others_deleted(
    name: str, tmp_path: Path, as_role: AsRole, valkey_url: str
) -> None:
    alone = ALONE[name]
    copy = tmp_path / "checkout" / "services"
    shutil.copytree(_PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in copy.iterdir():
        if folder.is_dir() and folder.name not in alone.folders:
            shutil.rmtree(folder)
    base = free_port_base()
    port, metrics_port = base, base + 1
    log = (tmp_path / "log").open("wb")
    process = await asyncio.create_subprocess_exec(
        # What the console script of that name does, with the copy in place of this checkout.
        *(
            sys.executable,
            "-P",
            "-c",
            f"import {alone.entry} as entry; print(entry.__file__, flush=True); entry.main()",
        ),
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(copy.parent),
            "ORDERS_POSTGRES_URL": as_role(alone.role) if alone.role else "",
            "ORDERS_VALKEY_URL": valkey_url,
            "ORDERS_KAFKA_URL": "127.0.0.1:1",
            "ORDERS_HOME": str(tmp_path / "home"),
            "ORDERS_PORT": str(port),
            "ORDERS_METRICS_PORT": str(metrics_port),
        },
        stdout=log,
        stderr=log,
    )
    try:

        async def serves() -> bool:
            assert process.returncode is None, (tmp_path / "log").read_text()
            return await answers(metrics_port if alone.on_metrics_port else port, alone.path)

        await eventually(serves, f"{alone.path} answers", seconds=30)
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        log.close()
    written = (tmp_path / "log").read_text()
    assert str(copy) in written.splitlines()[0], "it was not the copy that ran"
    assert "Traceback" not in written
    assert code in {0, -signal.SIGTERM}, written


def test_every_process_of_ours_is_tried_alone() -> None:
    from importlib.metadata import distribution

    scripts = {one.name for one in distribution("order-backend").entry_points if one.group == "console_scripts"}
    assert scripts - {"orders"} == set(ALONE)
