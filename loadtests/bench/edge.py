"""What the edge saves: `python loadtests/bench/edge.py [--rounds 5] [--seconds 5]`; needs nginx and wrk.

GET /v1/products (a page of 20) and GET /v1/products/{id}, through the edge and straight from catalog-api, alternately
(A B B A) in one run on one machine, by wrk with 32 connections.
"""

import argparse
import asyncio
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import asyncpg

from services.cli.up import prepare
from services.common import ids
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

CONNECTIONS = 32


async def wrk(url: str, seconds: int) -> float:
    """Requests per second, of which none failed."""
    process = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", url), stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode()
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if process.returncode or rate is None or "Socket errors" in output or "Non-2xx" in output:
        raise SystemExit(f"the run is void:\n{output}")
    return float(rate[1])


async def compare(edge: str, origin: str, path: str, rounds: int, seconds: int) -> None:
    """Each round's rates and their ratio, and the median of the ratios."""
    for base in (edge, origin):
        await wrk(base + path, 1)  # warm
    ratios = []
    for number in range(1, rounds + 1):
        found: dict[str, list[float]] = {edge: [], origin: []}
        for base in (edge, origin, origin, edge):
            found[base].append(await wrk(base + path, seconds))
        rates = {base: statistics.mean(each) for base, each in found.items()}
        ratios.append(rates[edge] / rates[origin])
        sys.stdout.write(
            f"GET {path}  round {number}: edge {rates[edge]:.0f}/s, origin {rates[origin]:.0f}/s,"
            f" ratio {ratios[-1]:.1f}\n"
        )
        sys.stdout.flush()
    spread = f"{min(ratios):.1f}..{max(ratios):.1f}"
    sys.stdout.write(f"GET {path}  median ratio {statistics.median(ratios):.1f} ({spread}, {rounds} rounds A B B A)\n")


async def main(rounds: int, seconds: int) -> None:
    """Run and print."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is missing: apt-get install wrk")
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url="127.0.0.1:1")
        processes = [process for process in PROCESSES if process.name in {"token-issuer", "catalog-api"}]
        async with Stack(settings, processes=processes, edge=True, prepare=prepare) as stack:
            connection = await asyncpg.connect(stack.addresses.postgres)
            product_id = ids.to_text(await connection.fetchval("SELECT product_id FROM catalog.products LIMIT 1"))
            await connection.close()
            edge, origin = str(stack.endpoints["edge"]), str(stack.endpoints["catalog"])
            for path in ("/v1/products", f"/v1/products/{product_id}"):
                await compare(edge, origin, path, rounds, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.seconds))
