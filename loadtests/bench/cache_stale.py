"""How stale a cached answer can be: two processes of orders-api, writers, and readers that compare every answer."""

import asyncio
import time
from pathlib import Path
from typing import Final

from loadtests.bench.said import say
from services.contracts.cache import INVENTORY, ORDER
from tests.faults.stage import Stage, busy, staged
from tests.faults.strokes import ALLOWED, STROKES

BETWEEN_SECONDS: Final = (0.3, 1.3)  # two faults, so that they meet writes and looks of the relay at any time
WELL_SECONDS: Final = 1.0  # before the first


async def unfaulted(home: Path, answers: int, seed: int) -> None:
    """So many answers while nothing fails."""
    async with staged(home, seed=seed) as stage, busy(stage):
        began = time.monotonic()
        while stage.seen.answers.total() < answers:
            await asyncio.sleep(0.05)
        took = time.monotonic() - began
        seen = stage.seen
        if stage.refused:
            raise SystemExit(f"the run is void: {dict(stage.refused)}")
        say(
            f"without a fault: {seen.stale.total()} of {seen.answers.total():,} answers stale,"
            f" {seen.backwards} backwards; {writes(stage)} writes, {took:.0f} s; {outcomes(stage)}"
        )


async def faulted(home: Path, rounds: int, seed: int) -> None:
    """Each fault, struck so many times."""
    async with staged(home, seed=seed) as stage:
        for name, stroke in STROKES.items():
            stage.begin_anew()
            async with busy(stage):
                await asyncio.sleep(WELL_SECONDS)
                for _ in range(rounds):
                    await asyncio.sleep(stage.chance.uniform(*BETWEEN_SECONDS))
                    await stroke(stage)
            unexpected = set(stage.refused) - ALLOWED.get(name, frozenset())
            told = "; ".join(f"{kind.name} {stage.seen.figures(kind.name)}" for kind in (ORDER, INVENTORY))
            say(
                f"{name}, {rounds} times: {told}; {stage.seen.backwards} backwards, {len(unexpected)} unexpected errors"
            )


def writes(stage: Stage) -> int:
    """That were acknowledged."""
    return sum(map(len, stage.seen.writes.values()))


def outcomes(stage: Stage) -> str:
    """Of all reads."""
    found = sum((stage.seen.outcomes[process] for process in stage.replicas), start=type(stage.refused)())
    return ", ".join(f"{name} {count:,}" for name, count in sorted(found.items()))
