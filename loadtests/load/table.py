"""What a result says, as the tables of docs/performance.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from loadtests.load.scenario import LoadError
from loadtests.machine import ROOT
from services.cli.marked import replaced

DOCUMENT: Final = ROOT / "docs" / "performance.md"
_MARK: Final = "python -m loadtests.load --table"


def write(result: Path, document: Path = DOCUMENT) -> None:
    """The document has the tables of `result`, a result.json. LoadError when it is none, or its first run is void."""
    try:
        content = orjson.loads(result.read_bytes())
        text = "\n".join([*_lines(content), ""])
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise LoadError(f"{result} holds no result of a run: {error!r}") from error
    document.write_text(replaced(document.read_text(encoding="utf-8"), _MARK, text), encoding="utf-8")


def _lines(content: dict[str, Any]) -> Iterator[str]:
    run = content["runs"][0]
    if run["void"]:
        raise LoadError(f"The run is void, and its figures mean nothing: {'; '.join(run['void'])}")
    yield from _about(content, run)
    yield ""
    yield "| operation | requests | p50 | p99 | most |"
    yield "|---|---|---|---|---|"
    for name, found in sorted(run["operations"].items()):
        response = found["response_ms"]
        times = " | ".join(f"{response[share]:.1f} ms" for share in ("p50", "p99", "max"))
        yield f"| `{name}` | {found['requests']:,} | {times} |"
    yield ""
    yield "| process | statement | calls | mean | p50 | p99 (bucket) | server | blocks (read) | WAL | partitions |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for one in run["statements"]:
        yield f"| {' | '.join(_cells(one, content['plans'].get(one['statement'])))} |"


def _about(content: dict[str, Any], run: dict[str, Any]) -> Iterator[str]:
    machine, load, upkeep = content["machine"], content["load"], run["upkeep"]
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB"
    yield (
        f"- {machine['commit']}, {machine['cores']} cores of {machine['cpu']}, {memory},"
        f" {machine['fsyncs_per_second']:,.0f} syncs a second; {', '.join(content['versions'])}"
    )
    yield f"- `{content['command']}`, on {content['orders_estimated']:,} orders"
    yield (
        f"- {run['rate']:g} requests/s for {load['seconds']:g} s: {run['requests']:,} measured, {run['failed']} failed,"
        f" {run['dropped']} journeys dropped; orders acknowledged {run['orders']['acknowledged']:,}, rows"
        f" {run['orders']['rows']:,}, events {run['orders']['events']:,} (with those of the warm-up)"
    )
    yield (
        f"- meanwhile {upkeep['checkpoints']} checkpoints, {upkeep['autovacuums']} autovacuums,"
        f" {upkeep['autoanalyzes']} autoanalyzes, {upkeep['summary_refreshes']} refreshes of the summaries,"
        f" months made: {', '.join(upkeep['months_made']) or 'none'}"
    )
    missed = "; ".join(run["missed"])
    yield f"- objectives missed: {missed}" if missed else "- every objective is met"
    if "knee" in content:
        yield f"- {content['knee']}"


def _cells(one: dict[str, Any], plan: dict[str, Any] | None) -> Iterator[str]:
    yield from (one["process"], f"`{one['statement']}`", f"{one['calls']:,}")
    yield from (f"{one['mean_ms']:.2f} ms", f"{one['p50_ms']:.2f} ms")
    low, high = one["p99_between_ms"]
    yield f"{one['p99_ms']:.2f} ms ({low:g} to {high:g})" if high else f"over {low:g} ms"
    server = one.get("postgresql")
    if server:
        blocks = server["blocks_hit"] + server["blocks_read"]
        yield from (f"{server['mean_exec_ms']:.2f} ms", f"{blocks:.0f} ({server['blocks_read']:.1f})")
        yield f"{server['wal_bytes']:,} B"
    else:
        yield from ("", "", "")
    touched = plan["partitions"] if plan else {}
    yield ", ".join(f"{count} of `{table}`" for table, count in touched.items())
