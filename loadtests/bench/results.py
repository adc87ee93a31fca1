"""What rows have found: as JSON and plots in a folder, and as the table of docs/performance.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from loadtests.bench import plots
from loadtests.bench.measure import PERCENTILES, Plan, Result
from loadtests.machine import ROOT
from services.cli.marked import replaced

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_MARK: Final = "orders bench --table"
_P99: Final = PERCENTILES.index(99.0)


def keep(folder: Path, facts: dict[str, Any], plan: Plan, result: Result) -> None:
    """Result and plots are in the folder, in the place of those of an earlier run."""
    folder.mkdir(parents=True, exist_ok=True)
    name = result.name.replace(" ", "-")
    content = {"machine": facts, "seconds": plan.seconds, "quick": plan.quick, **result.content()}
    (folder / f"{name}.json").write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2))
    if any(phase.latencies_ms for phase in result.phases):
        plots.latency(result).render_to_file(str(folder / f"{name}-latency.svg"))
    plots.rate(result).render_to_file(str(folder / f"{name}-rate.svg"))


def read(folder: Path) -> list[tuple[dict[str, Any], Result]]:
    """All of the folder that was not quick: the file's content and the result in it, by name."""
    contents = (orjson.loads(file.read_bytes()) for file in sorted(folder.glob("*.json")))
    return [(content, Result.read(content)) for content in contents if not content["quick"]]


def write_table(folder: Path, document: Path = DOCUMENT) -> int:
    """The document has the table of what is in the folder; how many comparisons that are. ValueError when none."""
    found = read(folder)
    if not found:
        raise ValueError(f"there is no result in {folder} but quick ones")
    text = "\n".join([*_machines(found), "", *_table([result for _, result in found]), ""])
    document.write_text(replaced(document.read_text(encoding="utf-8"), _MARK, text), encoding="utf-8")
    return len(found)


def _machines(found: Sequence[tuple[dict[str, Any], Result]]) -> list[str]:
    """A line for each commit and machine that has measured."""
    lines = []
    for content, result in found:
        machine = content["machine"]
        lines.append(
            f"- {machine['commit']}, {machine['cores']} cores of {machine['cpu']},"
            f" {machine['memory_bytes'] / 2**30:.0f} GiB, PostgreSQL {machine['postgresql']['server_version']},"
            f" {machine['fsyncs_per_second']:,.0f} syncs a second;"
            f" {result.rounds} rounds, turns of {content['seconds']:g} s"
        )
    return list(dict.fromkeys(lines))


def _table(found: Sequence[Result]) -> Iterator[str]:
    yield "| row | of whom | a second | CPU of one: itself, PostgreSQL | p99 | ours to it (spread) |"
    yield "|---|---|---|---|---|---|"
    for result in found:
        for side in result.sides:
            process, postgres = result.cpu_us(side)
            latencies = result.latencies_ms(side)
            p99 = f"{latencies[_P99]:.1f} ms" if latencies else ""
            ratio = result.ratio(side) if side != result.sides[0] else None
            told = f"{ratio.median:.2f} ({ratio.least:.2f}..{ratio.most:.2f})" if ratio else ""
            first = result.name if side == result.sides[0] else ""
            cpu = f"{process:.0f} us, {postgres:.0f} us"
            yield f"| {first} | {side} | {result.rate(side):,.0f} | {cpu} | {p99} | {told} |"
    yield from _facts(found)


def _facts(found: Sequence[Result]) -> Iterator[str]:
    """Sizes of keys, which are no rates."""
    for result in found:
        for kind, sizes in result.facts.get("bytes of a row", {}).items():
            told = f"{sizes['of_table']:g} in the table, {sizes['of_indexes']:g} in indexes"
            yield f"| bytes of a row | {kind} | {told} | | | |"


def keep_flatness(folder: Path, found: Sequence[Result]) -> None:
    """The plot over sizes is in the folder, when any of `found` has sizes."""
    over_sizes = [result for result in found if result.name.startswith(plots.FLATNESS)]
    if over_sizes:
        plots.flatness(over_sizes).render_to_file(str(folder / "flatness.svg"))
