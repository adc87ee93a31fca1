"""What reads cost without the cache: at a rate that one process can bear, with it and with it dead, alternately."""

import statistics
from typing import Final

from loadtests.bench.cache_shop import Run, Shop
from loadtests.bench.said import say
from tests.faults.waiting import eventually

CONNECTIONS: Final = 16
SHARE: Final = 0.6
STEPS: Final = (0.9, 0.8, 0.7, 0.6, 0.5)  # of what a closed loop gets
BEARABLE_SECONDS: Final = 0.2  # p99; above it a queue grows


async def dead(shop: Shop, rounds: int, seconds: float) -> None:
    """Run and print."""
    highest = await _highest(shop, seconds)
    rate = highest * SHARE
    say(f"dead: the highest rate without errors is {highest:.0f} reads/s; compared at {rate:.0f}")
    for how in ("killed", "frozen"):
        ratios = []
        for number in range(rounds):
            found: dict[str, list[Run]] = {"alive": [], how: []}
            for state in ("alive", how, how, "alive"):
                if state == how:
                    await _die(shop, how)
                try:
                    found[state].append(await shop.offered(rate, seconds))
                finally:
                    if state == how:
                        await _revive(shop, how)
            p99 = {state: statistics.mean(run.p99 for run in runs) for state, runs in found.items()}
            errors = {state: sum((run.errors for run in runs), start=runs[0].errors) for state, runs in found.items()}
            ratios.append(p99[how] / p99["alive"])
            say(
                f"dead, round {number + 1}: p99 alive {p99['alive'] * 1000:.1f} ms, {how} {p99[how] * 1000:.1f} ms;"
                f" ratio {ratios[-1]:.2f}; errors { {state: dict(met) for state, met in errors.items()} };"
                f" {dict(found['alive'][0].outcomes)} and {dict(found[how][0].outcomes)}"
            )
        spread = f"{min(ratios):.2f}..{max(ratios):.2f}"
        say(f"dead: {how}: median ratio of p99 {statistics.median(ratios):.2f} ({spread}, {rounds} rounds A B B A)")


async def _highest(shop: Shop, seconds: float) -> float:
    """Reads a second that are all answered in time, with the cache."""
    await shop.closed(CONNECTIONS, seconds)  # warm
    limit = (await shop.closed(CONNECTIONS, seconds)).rate
    for step in STEPS:
        run = await shop.offered(limit * step, seconds)
        if not run.errors and run.p99 < BEARABLE_SECONDS:
            return limit * step
    raise SystemExit(f"the run is void: no rate below {limit:.0f}/s is borne")


async def _die(shop: Shop, how: str) -> None:
    if how == "killed":
        await shop.valkey.kill()
    else:
        shop.valkey.freeze()


async def _revive(shop: Shop, how: str) -> None:
    """And the process has noticed."""
    if how == "killed":
        await shop.valkey.start()
    else:
        shop.valkey.thaw()

    async def hit() -> bool:
        return (await shop.closed(1, 0.2)).outcomes["hit"] > 0

    await eventually(hit, "hits again")
