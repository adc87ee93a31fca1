"""Runs of a scenario by each generator, and everything that is held against them."""

import asyncio
import gzip
import math
import shutil
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from loadtests.load import agreement, evidence, scenario
from loadtests.load.accounting import Account, account
from loadtests.load.agreement import Compared
from loadtests.load.evidence import Evidence, Reading
from loadtests.load.generators import Ended, Generator, Load, Measured
from loadtests.load.samples import quantile
from loadtests.load.scenario import LoadError, Objectives
from loadtests.load.shop import Shop, visited

WATCHED_WITHIN_SECONDS: Final = 90.0  # of the end: long before, unless a month was hard to make and the run short
SALE_SHARE: Final = 0.2  # of those who come to a flash sale after the warm-up get something


@dataclass(frozen=True)
class Run:
    """One generator, once: what it measured, whether that is to be believed, and what the servers say of it."""

    generator: str
    number: int
    rate: float
    measured: Measured
    account: Account
    database: Sequence[Compared]
    server_cpu_seconds: float
    evidence: Evidence
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
    def missed(self) -> list[str]:
        """Each objective that does not hold."""
        return [*self.measured.missed, *self.evidence.missed(self.objectives)]

    @property
    def holds(self) -> bool:
        """Whether it is to be believed, and every objective holds."""
        return not verdict([self]) and not self.saturated

    @property
    def void(self) -> list[str]:
        """Why nothing it says counts; empty when it does."""
        return self.account.mismatches() or ([] if self.requests else ["nothing was measured"])


@dataclass(frozen=True)
class Site:
    """Where runs are made: so many products are asked for, and raw samples go below `folder`.

    With `work` PostgreSQL's own count of each statement is told too.
    """

    shop: Shop
    products: int
    folder: Path
    work: bool
    say: Callable[[str], None]


async def run(site: Site, generators: Sequence[Generator], load: Load, runs: int) -> list[Run]:
    """So many runs of each generator, alternately. LoadError when one cannot be run."""
    return [
        await _one(site, generator, load, number)
        for number in range(1, runs + 1)
        for generator in (generators if number % 2 else reversed(generators))  # A B B A: what drifts meets both
    ]


async def climb(site: Site, generator: Generator, load: Load, rates: Sequence[float]) -> list[Run]:
    """A run at each of the rates, up to one that does not hold. LoadError as `run`."""
    done: list[Run] = []
    for number, rate in enumerate(rates, 1):
        done.append(await _one(site, generator, replace(load, rate=rate), number))
        if not done[-1].holds:
            break
    return done


async def _one(site: Site, generator: Generator, load: Load, number: int) -> Run:
    shop, seconds = site.shop, load.warm_seconds + load.seconds
    site.say(f"{generator.name}, run {number}: {load.scenario} for {seconds:g} s, {load.rate:g} requests/s")
    folder = site.folder / f"{generator.name}-{number}"
    folder.mkdir(parents=True)
    objectives = Objectives.read(load.objectives)
    described = scenario.read(load.scenario)
    units = 0
    if "place_of_one_product" in described.operations:
        warm = load.warm_seconds * load.rate / described.requests_per_journey
        units = math.ceil(warm + SALE_SHARE * described.journeys(load.rate, load.seconds))
    visit = await visited(shop, seconds=seconds, products=site.products, units=units)
    targets = folder / "targets.json"
    visit.write(targets)
    try:
        before = await agreement.scraped(shop)
        ended, found = await _watched(site, generator, load, targets, folder)
        after = await agreement.scraped(shop)
    finally:
        targets.unlink()  # it has tokens
    measured = generator.measured(folder, ended)
    accounted = await account(shop, visit, measured.acknowledged, measured.samples.order_ids)
    _compress(folder / f"{generator.name}.csv")
    database = agreement.compared_database(
        before, after, measured.samples.all_db_ms, objectives.database_differs_by_at_most
    )
    return Run(
        generator=generator.name,
        number=number,
        rate=load.rate,
        measured=measured,
        account=accounted,
        database=database,
        server_cpu_seconds=after.cpu_seconds - before.cpu_seconds,
        evidence=found,
        objectives=objectives,
    )


async def _watched(site: Site, generator: Generator, load: Load, targets: Path, folder: Path) -> tuple[Ended, Evidence]:
    """The generator has run, and what servers did from the end of its warm-up to its own."""
    watch = asyncio.create_task(
        evidence.watch(site.shop, generator.begun(folder), load.seconds, work=site.work, roll_over=load.roll_over)
    )
    try:
        ended = await generator.run(load, targets, folder)
        try:
            before, trouble = await asyncio.wait_for(watch, WATCHED_WITHIN_SECONDS)
        except TimeoutError:
            raise LoadError(f"{generator.name} has not said when its warm-up was over.") from None
        return ended, Evidence.between(before, await Reading.now(site.shop, work=site.work), trouble)
    finally:
        watch.cancel()
        await asyncio.wait([watch])


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
        found += [f"{one.name}: {missed}" for missed in one.missed]
        found += [f"{one.name}: {told(each)}" for each in one.database if not each.agrees]
    believed = [one for one in runs if not one.void]
    return found + [told(each) for each in compared_generators(believed) if not each.agrees]


def knee_told(steps: Sequence[Run]) -> str:
    """Of `climb`: the highest rate at which every objective holds, and what does not at the next."""
    *below, last = steps
    if last.holds:
        return f"The knee is above {last.rate:g} requests/s: every objective holds there."
    why = "; ".join(verdict([last])) or f"{last.name} was busy itself"
    held = f"The knee is at {below[-1].rate:g} requests/s" if below else "There is no knee"
    return f"{held}: at {last.rate:g} requests/s not every objective holds ({why})."


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
