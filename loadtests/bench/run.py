"""Ours against its limit, alternately in one run: `python -m loadtests.bench.run [--rounds 5] [--seconds 5]`.

One process each, 16 connections, embedded PostgreSQL with every durability setting on. Needs `wrk` on the PATH (a
package of Debian). Prints requests per second of each round and the median of the rounds' ratios with their spread.
"""

import argparse
import asyncio
import json
import re
import secrets
import shutil
import statistics
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import httpx
import psutil

from services.cli.up import prepare
from services.common import ids
from services.common.settings import ProcessSettings
from services.embedded import keys
from services.embedded.processes import PROCESSES, Process
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import seed

CONNECTIONS = 16
ORDERS = 500
PRODUCTS, STOCK = 1_000, 1_000_000
WARM_SECONDS = 2
API, UNCACHED = "orders-api", "orders-api-uncached"
LIMITS = ("bare", "constant")  # programs beside this one
PORTS = {"bare": 9, "constant": 10, UNCACHED: 11}  # offsets from the stack's base, beside the processes'
NO_CACHE = {"ORDERS_CACHE_URL": ""}
NOT_NEW = ', ["If-None-Match"] = \'"1"\''

PLACE = """
local n = 0
local prefix = "{prefix}"
local bodies = {{{bodies}}}
request = function()
  n = n + 1
  return wrk.format("POST", "/v1/orders", {{["Authorization"] = "Bearer {token}", ["Content-Type"] = "application/json",
    ["Idempotency-Key"] = prefix .. n}}, bodies[n % #bodies + 1])
end
response = function(status) if status ~= 201 then print("unexpected status " .. status) os.exit(1) end end
"""
GET = """
local ids = {{{ids}}}
local n = 0
request = function()
  n = n % #ids + 1
  return wrk.format("GET", "{path}" .. ids[n], {{["Authorization"] = "Bearer {token}"{condition}}})
end
response = function(status) if status ~= {status} then print("unexpected status " .. status) os.exit(1) end end
"""


async def wrk(url: str, script: str, seconds: int, pid: int) -> tuple[float, float]:
    """Requests per second that all succeeded, and CPU microseconds of the process `pid` for each."""
    process_before = psutil.Process(pid).cpu_times()
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", file.name, url),
            stdout=asyncio.subprocess.PIPE,
        )
        output = (await process.communicate())[0].decode()
    used = psutil.Process(pid).cpu_times()
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", output), re.search(r"(\d+) requests in", output)
    if process.returncode or rate is None or count is None or "Socket errors" in output:
        raise SystemExit(f"the run is void:\n{output}")
    seconds_used = used.user + used.system - process_before.user - process_before.system
    return float(rate[1]), seconds_used / int(count[1]) * 1e6


@dataclass(frozen=True)
class Row:
    """A comparison: what runs, and the process it runs against, ours and its limit."""

    name: str
    ours: str
    limit: str
    script: Callable[[], str]
    limit_script: Callable[[], str] | None = None  # where it is another


async def main(rounds: int, seconds: int, only: str) -> None:
    """Run and print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url="127.0.0.1:1")
        known = {process.name: process for process in PROCESSES}
        api = known["orders-api"]
        ours = [
            known["token-issuer"],
            api,
            replace(
                api, name=UNCACHED, port=PORTS[UNCACHED], metrics=None, endpoint=None, argv=script_of(api), env=NO_CACHE
            ),
            *(
                Process(
                    name,
                    role="orders_api",
                    port=PORTS[name],
                    ready_path="/readyz",
                    argv=(sys.executable, str(Path(__file__).with_name(f"{name}.py"))),
                )
                for name in LIMITS
            ),
        ]
        async with Stack(settings, processes=tuple(ours), prepare=prepare) as stack:
            await seed.seed(stack.addresses.postgres, products=PRODUCTS, stock=STOCK, orders=0, months=1, seed=1)
            for row in await rows(stack):
                if only in row.name:
                    await compare(row, stack, rounds, seconds)


def script_of(process: Process) -> tuple[str, ...]:
    """What starts it, under whatever name."""
    return (str(Path(sys.executable).with_name(process.name)),)


async def rows(stack: Stack) -> list[Row]:
    """What is compared, on orders that there are."""
    token = keys.mint(
        stack.settings.home,
        issuer=stack.addresses.issuer,
        audience=ProcessSettings().audience,
        sub=str(uuid.uuid4()),
        scope="orders:read orders:write",
    )
    connection = await asyncpg.connect(stack.addresses.postgres)
    products = [ids.to_text(row[0]) for row in await connection.fetch("SELECT product_id FROM orders.products")]
    await connection.close()
    # Baskets of one to three of many products: what is measured is placing, not the queue for one product's stock.
    bodies = [
        json.dumps(
            {"currency": "USD", "items": [{"product_id": p, "quantity": 1} for p in products[n : n + 1 + n % 3]]}
        )
        for n in range(len(products) - 2)
    ]
    orders = []
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=url_of(stack, API), headers=headers) as client:
        for number in range(ORDERS):
            placed = await client.post(
                "/v1/orders",
                content=bodies[number],
                headers={"Idempotency-Key": f"seed-{number}", "Content-Type": "application/json"},
            )
            orders.append(placed.raise_for_status().json()["order_id"])

    def place() -> str:
        return PLACE.format(prefix=secrets.token_hex(6), token=token, bodies=", ".join(f"'{body}'" for body in bodies))

    def get(path: str = "/v1/orders/", status: int = 200, condition: str = "") -> Callable[[], str]:
        listed = ", ".join(f'"{order}"' for order in orders)
        return lambda: GET.format(ids=listed, token=token, path=path, status=status, condition=condition)

    not_new = get(status=304, condition=NOT_NEW)

    return [
        Row("POST", API, "bare", place),
        Row("POST with the cache, and without", API, UNCACHED, place),
        Row("GET without cache", UNCACHED, "bare", get()),
        Row("GET cached, against constant bytes", API, "bare", get(), get("/v1/constant/")),
        Row("GET 304, against constant bytes", API, "bare", not_new, get("/v1/constant/")),
        Row("GET cached, against constant bytes on our own HTTP layer", API, "constant", get()),
        Row("GET 304, against constant bytes on our own HTTP layer", API, "constant", not_new, get()),
    ]


def url_of(stack: Stack, name: str) -> str:
    """Of a process's HTTP server."""
    return f"http://127.0.0.1:{stack.settings.port(PORTS[name])}" if name in PORTS else str(stack.endpoints["orders"])


async def compare(row: Row, stack: Stack, rounds: int, seconds: int) -> None:
    """Both alternately: A B B A."""
    scripts = {row.ours: row.script, row.limit: row.limit_script or row.script}

    async def run(who: str, for_seconds: int) -> tuple[float, float]:
        return await wrk(url_of(stack, who), scripts[who](), for_seconds, stack.pid(who) or 0)

    for who in scripts:
        await run(who, WARM_SECONDS)
    ratios = []
    for number in range(rounds):
        found: dict[str, list[tuple[float, float]]] = {who: [] for who in scripts}
        for who in (row.ours, row.limit, row.limit, row.ours):
            found[who].append(await run(who, seconds))
        rate, cpu = (
            {who: statistics.mean(pair[part] for pair in pairs) for who, pairs in found.items()} for part in (0, 1)
        )
        ratios.append(rate[row.ours] / rate[row.limit])
        sys.stdout.write(
            f"{row.name}  round {number + 1}: ours {rate[row.ours]:.0f}/s, {cpu[row.ours]:.0f} us of CPU; {row.limit}"
            f" {rate[row.limit]:.0f}/s, {cpu[row.limit]:.0f} us; ratio {ratios[-1]:.3f},"
            f" of CPU {cpu[row.limit] / cpu[row.ours]:.3f}\n"
        )
    spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
    sys.stdout.write(f"{row.name}  median ratio {statistics.median(ratios):.3f} ({spread}, {rounds} rounds A B B A)\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--only", default="", help="rows whose name has this")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.seconds, arguments.only))
