"""How much of a mix of reads and writes the cache answers, and how much it could at most."""

import math
from collections.abc import Sequence
from typing import Final

from loadtests.bench.cache_shop import ORDERS, Run, Shop
from loadtests.bench.said import say
from services.contracts.cache import ORDER

WRITES: Final = 0.05
CONNECTIONS: Final = 16
TTL_SECONDS: Final = ORDER.ttl_ms / 1000
ASKED_FOR: Final = (0.80, 0.90, 0.94, 0.945)
RATE_MAX: Final = 1e12


async def mix(shop: Shop, seconds: float) -> None:
    """Run and print."""
    run = await shop.closed(CONNECTIONS, seconds, writes=WRITES)
    reads = run.outcomes.total()
    say(
        f"mix: {run.rate:.0f} requests/s for {run.seconds:.0f} s, {len(run.asked) - reads:,} writes, {reads:,} reads:"
        f" {dict(run.outcomes)}, errors {dict(run.errors)}"
    )
    say(
        f"mix: hit ratio measured {run.outcomes['hit'] / reads:.3f}; possible for these very requests"
        f" {possible(run):.3f}; at this rate for ever {steady(run.rate):.3f}"
    )
    say(
        "mix: "
        + ", ".join(f"{ratio:.1%} at {rate_for(ratio):,.0f} requests/s" for ratio in ASKED_FOR)
        + f"; no rate gives more than {1 - WRITES:.1%}"
    )


def possible(run: Run) -> float:
    """The share of hits when every read finds what a read has brought in its TTL, unless it was written since."""
    brought: dict[int, float] = {}
    hits = 0
    for at, rank, writing in sorted(run.asked):
        if writing:
            brought.pop(rank, None)
        elif at - brought.get(rank, -math.inf) < TTL_SECONDS:
            hits += 1
        else:
            brought[rank] = at
    return hits / run.outcomes.total()


def steady(rate: float, weights: Sequence[float] = ()) -> float:
    """The share of hits of reads that come by chance at `rate`, writes among them.

    Of one order with `r` reads and `w` writes a second: what a miss brings lives until a write or its TTL `T`, so
    E[L] = (1 - exp(-wT)) / w, meets rE[L] reads, and then comes the next miss: rE[L] / (1 + rE[L]) are hits.
    """
    shares = weights or zipf()
    hits = 0.0
    for share in shares:
        reads, writes = rate * share * (1 - WRITES), rate * share * WRITES
        met = reads * -math.expm1(-writes * TTL_SECONDS) / writes
        hits += share * met / (1 + met)
    return hits


def rate_for(ratio: float) -> float:
    """Requests a second that `steady` gives so many hits."""
    low, high, shares = 0.0, 1.0, zipf()
    while steady(high, shares) < ratio:
        high *= 4
        if high > RATE_MAX:
            return math.inf
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if steady(middle, shares) < ratio else (low, middle)
    return high


def zipf() -> list[float]:
    """The share of each rank."""
    total = math.fsum(1 / rank for rank in range(1, ORDERS + 1))
    return [1 / rank / total for rank in range(1, ORDERS + 1)]
