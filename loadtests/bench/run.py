"""Ours against the limit (bare.py), alternately in one run: `python -m loadtests.bench.run [--rounds 5] [--seconds 5]`.

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
BARE_PORT = 9  # offset from the stack's base, beside the processes'

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
  return wrk.format("GET", "/v1/orders/" .. ids[n], {{["Authorization"] = "Bearer {token}"}})
end
response = function(status) if status ~= 200 then print("unexpected status " .. status) os.exit(1) end end
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


async def main(rounds: int, seconds: int) -> None:
    """Run and print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url="127.0.0.1:1")
        bare = Process(
            "bare",
            role="orders_api",
            port=BARE_PORT,
            ready_path="/readyz",
            argv=(sys.executable, str(Path(__file__).with_name("bare.py"))),
        )
        processes = [process for process in PROCESSES if process.name in {"token-issuer", "orders-api"}]
        async with Stack(settings, processes=(*processes, bare), prepare=prepare) as stack:
            await seed.seed(stack.addresses.postgres, products=PRODUCTS, stock=STOCK, orders=0, months=1, seed=1)
            await compare(stack, rounds, seconds)


async def compare(stack: Stack, rounds: int, seconds: int) -> None:
    """Every operation, ours and bare alternately: A B B A."""
    urls = {
        "ours": str(stack.endpoints["orders"]),
        "bare": f"http://127.0.0.1:{stack.settings.port(BARE_PORT)}",
    }
    pids = {"ours": stack.pid("orders-api") or 0, "bare": stack.pid("bare") or 0}
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
    async with httpx.AsyncClient(base_url=urls["ours"], headers={"Authorization": f"Bearer {token}"}) as client:
        for number in range(ORDERS):
            placed = await client.post(
                "/v1/orders",
                content=bodies[number],
                headers={"Idempotency-Key": f"seed-{number}", "Content-Type": "application/json"},
            )
            orders.append(placed.raise_for_status().json()["order_id"])
    scripts = {
        "POST /v1/orders": lambda: PLACE.format(
            prefix=secrets.token_hex(6), token=token, bodies=", ".join(f"'{body}'" for body in bodies)
        ),
        "GET /v1/orders/{id}": lambda: GET.format(ids=", ".join(f'"{order}"' for order in orders), token=token),
    }
    for name, script in scripts.items():
        for who, url in urls.items():
            await wrk(url, script(), 2, pids[who])  # warm
        ratios = []
        for number in range(rounds):
            found: dict[str, list[tuple[float, float]]] = {"ours": [], "bare": []}
            for who in ("ours", "bare", "bare", "ours"):
                found[who].append(await wrk(urls[who], script(), seconds, pids[who]))
            rate, cpu = (
                {who: statistics.mean(pair[part] for pair in pairs) for who, pairs in found.items()} for part in (0, 1)
            )
            ratios.append(rate["ours"] / rate["bare"])
            sys.stdout.write(
                f"{name}  round {number + 1}: ours {rate['ours']:.0f}/s, {cpu['ours']:.0f} us of CPU; bare"
                f" {rate['bare']:.0f}/s, {cpu['bare']:.0f} us; ratio {ratios[-1]:.3f},"
                f" of CPU {cpu['bare'] / cpu['ours']:.3f}\n"
            )
        spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
        sys.stdout.write(f"{name}  median ratio {statistics.median(ratios):.3f} ({spread}, {rounds} rounds A B B A)\n")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.seconds))
