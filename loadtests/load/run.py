"""Runs of a scenario by each generator, and everything that is held against them."""

import gzip
import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtests.load import agreement, scenario
from loadtests.load.accounting import Account, account
from loadtests.load.agreement import Compared
from loadtests.load.generators import Generator, Load, Measured
from loadtests.load.samples import quantile
from loadtests.load.scenario import Objectives
from loadtests.load.shop import Shop, visited

SALE_SHARE: Final = 0.2  # of those who come to a flash sale after the warm-up get something


@dataclass(frozen=True)
class Run:
    """One generator, once: what it measured, whether that is to be believed, and what the servers say of it."""

    generator: str
    number: int
    measured: Measured
    account: Account
    database: Sequence[Compared]
    server_cpu_seconds: float
    objectives: Objectives

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.generator} {self.number}"

    @property
    def requests(self) -> int:
        """Measured, after the warm-up."""
        return len(self.measured.samples.responses)

    @property
    def p50(self) -> float:
        """Of all responses, in milliseconds."""
        return quantile(self.measured.samples.responses, 0.5)

    @property
    def saturated(self) -> bool:
        """Whether the generator itself was busy: then its rate is its own, not the servers'."""
        return self.measured.cores > self.objectives.generator_cores_max

    @property
    def void(self) -> list[str]:
        """Why nothing it says counts; empty when it does."""
        return self.account.mismatches() or ([] if self.requests else ["nothing was measured"])


async def run(
    shop: Shop,
    generators: Sequence[Generator],
    load: Load,
    *,
    runs: int,
    products: int,
    folder: Path,
    say: Callable[[str], None],
) -> list[Run]:
    """So many runs of each generator, alternately. LoadError when one cannot be run. Raw samples are in `folder`."""
    done = []
    for number in range(1, runs + 1):
        for generator in generators if number % 2 else reversed(generators):  # A B B A: what drifts meets both
            say(f"{generator.name}, run {number} of {runs}: {load.scenario} for {load.warm_seconds + load.seconds:g} s")
            where = folder / f"{generator.name}-{number}"
            where.mkdir(parents=True)
            done.append(await _one(shop, generator, load, number, products, where))
    return done


async def _one(shop: Shop, generator: Generator, load: Load, number: int, products: int, folder: Path) -> Run:
    objectives = Objectives.read(load.objectives)
    described = scenario.read(load.scenario)
    units = 0
    if "place_of_one_product" in described.operations:
        warm = load.warm_seconds * load.rate / described.requests_per_journey
        units = math.ceil(warm + SALE_SHARE * described.journeys(load.rate, load.seconds))
    visit = await visited(shop, seconds=load.warm_seconds + load.seconds, products=products, units=units)
    targets = folder / "targets.json"
    visit.write(targets)
    try:
        before = await agreement.scraped(shop)
        measured = await generator.run(load, targets, folder)
        after = await agreement.scraped(shop)
    finally:
        targets.unlink()  # it has tokens
    accounted = await account(shop, visit, measured.acknowledged, measured.samples.order_ids)
    _compress(folder / f"{generator.name}.csv")
    database = agreement.compared_database(
        before, after, measured.samples.all_db_ms, objectives.database_differs_by_at_most
    )
    return Run(
        generator.name, number, measured, accounted, database, after.cpu_seconds - before.cpu_seconds, objectives
    )


def compared_generators(runs: Sequence[Run]) -> list[Compared]:
    """The medians of the runs' p50, of one generator and the other; nothing unless there are two."""
    p50: dict[str, list[float]] = defaultdict(list)
    for each in runs:
        if each.requests:
            p50[each.generator].append(each.p50)
    if len(p50) < 2:
        return []
    (one, first), (other, second) = p50.items()
    share_max = runs[0].objectives.p50_differs_by_at_most
    return [Compared(f"p50 of {one} and {other}, ms", statistics.median(first), statistics.median(second), share_max)]


def verdict(runs: Sequence[Run]) -> list[str]:
    """What is wrong, run by run: void, objectives missed, measures that disagree. Nothing when all is well."""
    found = []
    for one in runs:
        if one.void:
            found += [f"{one.name} is VOID: {reason}" for reason in one.void]
            continue
        found += [f"{one.name}: {missed}" for missed in one.measured.missed]
        found += [f"{one.name}: {told(each)}" for each in one.database if not each.agrees]
    believed = [one for one in runs if not one.void]
    return found + [told(each) for each in compared_generators(believed) if not each.agrees]


def told(compared: Compared) -> str:
    """In a line."""
    return (
        f"{compared.what}: {compared.one:.3f} and {compared.other:.3f} differ by {compared.differs_by:.0%},"
        f" at most {compared.share_max:.0%} is meant"
    )


def _compress(file: Path) -> None:
    with file.open("rb") as plain, gzip.open(file.with_suffix(".csv.gz"), "wb") as packed:
        shutil.copyfileobj(plain, packed)
    file.unlink()
