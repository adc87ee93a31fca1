"""What runs have shown: as a table for people, and whole as JSON."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.load.generators import Load
from loadtests.load.run import Run, compared_generators, told
from loadtests.load.samples import median_and_spread, quantile


def content(runs: Sequence[Run], load: Load, notes: Sequence[str], wrong: Sequence[str]) -> dict[str, Any]:
    """All but the raw samples, which stand beside it. Times are in milliseconds."""
    return {
        "load": {**asdict(load), "objectives": asdict(runs[0].objectives)},
        "notes": list(notes),
        "runs": [_run(one, load) for one in runs],
        "median_and_spread": {
            generator: {
                what: dict(zip(("median", "least", "most"), median_and_spread(values), strict=True))
                for what, values in found.items()
            }
            for generator, found in _over_runs(runs).items()
        },
        "generators": [{**asdict(one), "agrees": one.agrees} for one in compared_generators(runs)],
        "wrong": list(wrong),
    }


def _run(run: Run, load: Load) -> dict[str, Any]:
    measured = run.measured
    return {
        "generator": run.generator,
        "number": run.number,
        "rate": run.rate,
        "void": run.void,
        "requests": run.requests,
        **({} if run.saturated else {"requests_per_second": round(run.requests / load.seconds, 1)}),
        "server_cpu_ms_per_request": round(run.server_cpu_seconds / max(1, measured.samples.requests) * 1000, 3),
        "generator_cores": round(measured.cores, 2),
        "dropped": measured.dropped,
        "failed": measured.failed,
        "missed": run.missed,
        "orders": {
            "counted": run.account.counted,
            "acknowledged": len(run.account.acknowledged),
            "rows": len(run.account.rows),
            "events": len(run.account.events),
            "units_on_sale": run.account.units,
            "units_sold": run.account.sold,
        },
        "database": [{**asdict(one), "agrees": one.agrees} for one in run.database],
        "operations": {
            name: {
                "requests": len(values),
                "response_ms": _quantiles(values),
                "db_ms": _quantiles(measured.samples.db_ms[name]),
            }
            for name, values in measured.samples.response_ms.items()
        },
        **run.evidence.content(),
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(quantile(values, share), 3) for name, share in shares.items()} if values else {}


def _over_runs(runs: Sequence[Run]) -> dict[str, dict[str, list[float]]]:
    """Of each generator: p50 and p99 of all responses, and p99 of the database by operation, run by run."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.void:
            continue
        figures = found[run.generator]
        responses = run.measured.samples.responses
        figures["response_ms_p50"].append(run.p50)
        figures["response_ms_p99"].append(quantile(responses, 0.99))
        for name, values in run.measured.samples.db_ms.items():
            figures[f"{name}_db_ms_p99"].append(quantile(values, 0.99))
    return found


def show(console: Console, told_of: dict[str, Any], runs: Sequence[Run]) -> None:
    """The tables, then the notes, then what is wrong."""
    for run in told_of["runs"]:
        table = Table(
            *("operation", "requests", "p50 ms", "p99 ms", "max ms", "db p50", "db p99"),
            title=f"{run['generator']} {run['number']}: {_pace(run)}, generator {run['generator_cores']} cores",
            title_justify="left",
            box=None,
        )
        for name, found in run["operations"].items():
            response, database = found["response_ms"], found["db_ms"]
            figures = [response["p50"], response["p99"], response["max"], database.get("p50"), database.get("p99")]
            table.add_row(name, f"{found['requests']:,}", *("" if one is None else f"{one:.1f}" for one in figures))
        console.print(table)
        console.print(_statements(run))
        console.print("  " + ", ".join(f"{kind} {count}" for kind, count in run["upkeep"].items()), highlight=False)
        console.print("  orders " + ", ".join(f"{name} {count}" for name, count in run["orders"].items() if count))
    knee = [told_of["knee"]] if "knee" in told_of else []
    lines = [*told_of["notes"], *knee, *(told(one) for one in compared_generators(runs))]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    for line in told_of["wrong"]:
        console.print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _statements(run: dict[str, Any]) -> Table:
    """By process; `exec` and `blocks` are a call's in PostgreSQL alone, where that is counted."""
    table = Table(
        *("", "calls", "p50 ms", "p99 ms", "exec ms", "blocks"),
        title=f"statements of {run['window_seconds']:.0f} s",
        title_justify="left",
        box=None,
    )
    for one in run["statements"]:
        server = one.get("postgresql")
        cells = [f"{one[name]:.2f}" for name in ("p50_ms", "p99_ms")]
        if server:
            cells += [f"{server['mean_exec_ms']:.2f}", f"{server['blocks_hit'] + server['blocks_read']:.0f}"]
        table.add_row(f"{one['process']} {one['statement']}", f"{one['calls']:,}", *cells)
    return table


def _pace(run: dict[str, Any]) -> str:
    if "requests_per_second" in run:
        return f"{run['requests_per_second']} requests/s"
    return (
        f"{run['server_cpu_ms_per_request']} ms of the servers' processors a request; no rate, the generator was busy"
    )
