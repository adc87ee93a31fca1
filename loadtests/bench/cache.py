"""The cache under load and under faults: `python -m loadtests.bench.cache [--parts stale faults mix dead]`.

Embedded servers with every durability setting on, real processes, real HTTP. `stale`: answers that were replaced, of
100,000 while nothing fails. `faults`: how long they are given under each single fault. `mix`: the hit ratio of reads
and 5 % writes, of 100,000 orders asked for by Zipf's law, beside what the mix allows. `dead`: p99 of reads that come
at 60 % of the highest rate without errors, with the cache and with it killed or frozen, A B B A.
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from loadtests.bench.cache_dead import dead
from loadtests.bench.cache_mix import mix
from loadtests.bench.cache_shop import opened
from loadtests.bench.cache_stale import faulted, unfaulted
from loadtests.bench.said import say

PARTS: Final = ("stale", "faults", "mix", "dead")


async def main(parts: Sequence[str], seed: int, answers: int, rounds: int, seconds: float) -> None:
    """Run and print."""
    say(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}, {datetime.now(UTC):%Y-%m-%d}")
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        home = Path(directory)
        home.chmod(0o755)  # PostgreSQL may run as another account
        if "stale" in parts:
            await unfaulted(home / "stale", answers, seed)
        if "faults" in parts:
            await faulted(home / "faults", rounds, seed)
        if {"mix", "dead"} & set(parts):
            async with opened(home / "shop", seed) as shop:
                if "mix" in parts:
                    await mix(shop, 4 * seconds)
                if "dead" in parts:
                    await dead(shop, 3, seconds)
    say(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--seed", type=int, default=20_261, help="what is left to chance follows from it")
    parser.add_argument("--answers", type=int, default=100_000, help="compared without a fault")
    parser.add_argument("--rounds", type=int, default=10, help="times that each fault strikes")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    arguments = parser.parse_args()
    asyncio.run(main(arguments.parts, arguments.seed, arguments.answers, arguments.rounds, arguments.seconds))
