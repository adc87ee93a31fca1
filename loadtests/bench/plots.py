"""Plots of what rows have found (SVG)."""

import math
from collections.abc import Sequence
from typing import Any, Final

import pygal

from loadtests.bench.measure import PERCENTILES, Result

FLATNESS: Final = "flatness "  # how the names of comparisons over sizes begin
_P99: Final = PERCENTILES.index(99.0)


def latency(result: Result) -> Any:
    """The distribution: how long the quickest so many percent took at most. The axis shows each nine as wide."""
    chart = _chart(f"{result.name}: latency", "percent that were as quick", "ms", logarithmic=True)
    for side in result.sides:
        points = zip(PERCENTILES, result.latencies_ms(side), strict=True)
        chart.add(side, [(_nines(percent), latency) for percent, latency in points if latency > 0])
    chart.x_labels = [{"value": _nines(percent), "label": f"{percent:g}"} for percent in (1, 50, 90, 99, 99.9)]
    return chart


def _nines(percent: float) -> float:
    return -math.log10(1 - percent / 100)


def rate(result: Result) -> Any:
    """Of each turn, over the time of the whole run: what drifts or jumps is seen here."""
    chart = _chart(f"{result.name}: {result.unit} a second", "seconds since the beginning", f"{result.unit}/s")
    for side in result.sides:
        chart.add(side, [(phase.started_at + phase.seconds / 2, phase.rate) for phase in result.of(side)])
    return chart


def flatness(found: Sequence[Result]) -> Any:
    """p99 of each statement over the number of orders there are; both axes logarithmic."""
    chart = _chart("p99 over the orders there are", "orders", "ms", logarithmic=True)
    sizes: set[int] = set()
    for result in found:
        by_size = {_orders(side): result.latencies_ms(side)[_P99] for side in result.sides}
        sizes |= by_size.keys()
        chart.add(result.name.removeprefix(FLATNESS), [(math.log10(size), by_size[size]) for size in sorted(by_size)])
    chart.x_labels = [{"value": math.log10(size), "label": f"{size:,}"} for size in sorted(sizes)]
    return chart


def _orders(side: str) -> int:
    """Of a side that is named by how many there are, such as "20,000 orders"."""
    return int(side.split(maxsplit=1)[0].replace(",", ""))


def _chart(title: str, x_title: str, y_title: str, *, logarithmic: bool = False) -> Any:
    return pygal.XY(
        title=title,
        x_title=x_title,
        y_title=y_title,
        height=420,
        js=(),
        legend_at_bottom=True,
        logarithmic=logarithmic,
        stroke_style={"width": 1.5},
        dots_size=2,
        **({} if logarithmic else {"include_x_axis": True}),
    )
