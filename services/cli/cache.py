"""`orders cache`: what the processes of a stack have of their cache, and how old an answer can be, now and at most."""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Annotated, Any, Final

import httpx
import orjson
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from services.cli.target import FAILED, console
from services.common.cache_watch import BOUND_SECONDS
from services.contracts.cache import KINDS
from services.embedded.settings import StackSettings
from services.relay.invalidations import INVALIDATIONS
from services.relay.settings import RelaySettings

ANSWER_SECONDS: Final = 5.0  # a busy process renders its metrics between requests
BREAKER: Final = {0: "closed", 1: "half-open", 2: "open"}

# What is counted of a kind: the metric, and its `outcome`.
READS: Final = {
    "hits": ("cache_requests_total", "hit"),
    "misses": ("cache_requests_total", "miss"),
    "bypasses": ("cache_requests_total", "bypass"),
    "fills_stored": ("cache_fills_total", "stored"),
    "fills_refused": ("cache_fills_total", "refused"),
}
L1: Final = {
    "hits": ("cache_l1_requests_total", "hit"),
    "misses": ("cache_l1_requests_total", "miss"),
    "off": ("cache_l1_requests_total", "off"),
}

Samples = Mapping[str, Mapping[frozenset[tuple[str, str]], float]]


def cache(as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """Show what each process of the stack in ORDERS_HOME reads from its cache, and how old that can be.

    Counts are since the start of the process. `oldest` is how long a write has waited to be told to the cache,
    `heartbeat` how long ago L1 surely knew of all writes. Exit code 2: no stack runs, or not all of it answers.
    """
    found, silent = asyncio.run(_read(_metrics_urls()))
    report = reported(found)
    if as_json:
        typer.echo(orjson.dumps({**report, "not_answering": silent}))
    else:
        _show(report)
    for name, error in silent.items():
        console.print(f"{name} does not answer: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    if silent:
        raise typer.Exit(FAILED)


def reported(found: Mapping[str, Samples]) -> dict[str, Any]:
    """What the metrics of the processes say of the cache; without the processes that have none."""
    return {
        "processes": {
            name: _process(samples, BREAKER[int(state)])
            for name, samples in found.items()
            if (state := _of(samples, "breaker_state", breaker="cache")) is not None
        },
        "waiting": next(filter(None, map(_waiting, found.values())), None),
        "bounds_seconds": {
            "nothing_failed": 0.0,
            "not_told_by_the_writer": RelaySettings().poll_seconds_max,
            "l1": BOUND_SECONDS,
            "ttl": {kind.name: kind.ttl_ms / 1000 for kind in KINDS.values()},
        },
    }


def _waiting(samples: Samples) -> dict[str, Any] | None:
    """What relays have to tell the cache, of all tables; each relay sees all of it, other processes nothing."""
    rows = [_of(samples, "outbox_depth", outbox=queue.name) for queue in INVALIDATIONS]
    ages = [_of(samples, "outbox_oldest_age_seconds", outbox=queue.name) for queue in INVALIDATIONS]
    if None in rows:
        return None
    return {"rows": sum(map(int, filter(None, rows))), "oldest_seconds": max(age or 0.0 for age in ages)}


def _process(samples: Samples, breaker: str) -> dict[str, Any]:
    kinds = sorted({value for each in samples["cache_requests_total"] for label, value in each if label == "kind"})
    return {
        "kinds": {kind: _kind(samples, kind) for kind in kinds},
        "invalidations": {
            outcome: _count(samples, "cache_invalidations_total", outcome=outcome) for outcome in ("sent", "failed")
        },
        "l1_flushes": {
            value: int(count) for labels, count in samples["cache_l1_flushes_total"].items() for _, value in labels
        },
        "breaker": breaker,
    }


def _kind(samples: Samples, kind: str) -> dict[str, Any]:
    read = {what: _count(samples, name, kind=kind, outcome=outcome) for what, (name, outcome) in READS.items()}
    reads = read["hits"] + read["misses"] + read["bypasses"]
    age = _of(samples, "cache_l1_heartbeat_age_seconds", kind=kind)
    l1 = age is not None and {
        **{what: _count(samples, name, kind=kind, outcome=outcome) for what, (name, outcome) in L1.items()},
        "entries": _count(samples, "cache_l1_entries", kind=kind),
        "bytes": _count(samples, "cache_l1_bytes", kind=kind),
        "heartbeat_age_seconds": None if math.isinf(age) else age,  # it was never heard
    }
    return {**read, "hit_ratio": read["hits"] / reads if reads else None, "l1": l1 or None}


def _of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples[name].get(frozenset(labels.items()))


def _count(samples: Samples, name: str, **labels: str) -> int:
    return int(_of(samples, name, **labels) or 0)


def _metrics_urls() -> dict[str, str]:
    """Of the processes of the stack. Exits when there is none."""
    path = StackSettings().home / "endpoints.json"
    try:
        return dict(orjson.loads(path.read_bytes())["metrics"])
    except FileNotFoundError as error:
        console.print(f"No stack runs in {path.parent}. Start one with `make up`, or set ORDERS_HOME.", soft_wrap=True)
        raise typer.Exit(FAILED) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        console.print(
            f"{path} does not say where the processes are: {error!r}", style="red", markup=False, soft_wrap=True
        )
        raise typer.Exit(FAILED) from error


async def _read(urls: Mapping[str, str]) -> tuple[dict[str, Samples], dict[str, str]]:
    """The metrics of each process, and why of some there are none."""
    found: dict[str, Samples] = {}
    silent: dict[str, str] = {}
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS) as client:

        async def read(name: str, url: str) -> None:
            try:
                response = await client.get(url)
                found[name] = _parsed(response.raise_for_status().text)
            except (httpx.HTTPError, ValueError) as error:
                silent[name] = repr(error)

        await asyncio.gather(*(read(name, url) for name, url in urls.items()))
    return {name: found[name] for name in urls if name in found}, silent


def _parsed(text: str) -> Samples:
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return samples


def _show(report: Mapping[str, Any]) -> None:
    out = Console(soft_wrap=True)
    if not report["processes"]:
        out.print("No process that answers has a cache.")
        return
    for table in (_reads(report["processes"]), _l1(report["processes"]), _writes(report["processes"]), _ages(report)):
        if table.row_count:
            out.print(table, "")


def _reads(processes: Mapping[str, Any]) -> Table:
    table = Table("process", "kind", "hits", "misses", "bypasses", "ratio", "stored", "refused", box=None)
    for name, process in processes.items():
        for kind, read in process["kinds"].items():
            asked, stored = ([f"{read[what]:,}" for what in part] for part in (list(READS)[:3], list(READS)[3:]))
            table.add_row(name, kind, *asked, "" if read["hit_ratio"] is None else f"{read['hit_ratio']:.1%}", *stored)
    return table


def _l1(processes: Mapping[str, Any]) -> Table:
    table = Table("process", "kind", "L1 hits", "misses", "off", "entries", "bytes", "flushes", box=None)
    for name, process in processes.items():
        flushes = ", ".join(f"{count:,} {reason}" for reason, count in process["l1_flushes"].items()) or "0"
        for kind, l1 in _with_l1(process):
            table.add_row(name, kind, *(f"{l1[what]:,}" for what in (*L1, "entries", "bytes")), flushes)
    return table


def _writes(processes: Mapping[str, Any]) -> Table:
    table = Table("process", "told the cache", "could not", "breaker", box=None)
    for name, process in processes.items():
        told = process["invalidations"]
        table.add_row(name, f"{told['sent']:,}", f"{told['failed']:,}", process["breaker"])
    return table


def _ages(report: Mapping[str, Any]) -> Table:
    table = Table("how old an answer can be after its replacement", "now", "at most", box=None)
    bounds, waiting = report["bounds_seconds"], report["waiting"]
    table.add_row("nothing has failed", "", f"{bounds['nothing_failed']:g} s")
    table.add_row(
        "its writer could not tell the cache" + (f": {waiting['rows']:,} wait for the relay" if waiting else ""),
        _seconds(waiting["oldest_seconds"]) if waiting else "no relay",
        f"the relay's look, {bounds['not_told_by_the_writer']:g} s",
    )
    for name, process in report["processes"].items():
        for kind, l1 in _with_l1(process):
            age = l1["heartbeat_age_seconds"]
            now = _seconds(age) if age is not None and age <= bounds["l1"] else "L1 is off"
            table.add_row(f"L1 of {name}, {kind} of another process", now, f"{bounds['l1']:g} s")
    for kind, ttl in bounds["ttl"].items():
        table.add_row(f"whatever fails, {kind}", "", f"its TTL, {ttl:g} s")
    return table


def _with_l1(process: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(kind, each["l1"]) for kind, each in process["kinds"].items() if each["l1"]]


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:,.3f} s"
