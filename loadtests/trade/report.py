"""What a run has shown: for a person as a table, for a program as JSON. Amounts are in minor units."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from loadtests.trade.audit import Audit
from loadtests.trade.reenact import Outcome
from loadtests.trade.supply import RefusedProduct, amount_text
from loadtests.trade.trade import Trade

QUANTILES: Final = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
SHOWN_MAX: Final = 20  # refusals and disagreements on the screen; JSON has them all


@dataclass(frozen=True)
class Report:
    """A run from its start to its audit. It agrees when there are no `disagreements`."""

    run: str
    trade: Trade
    speed_up: float | None
    concurrency: int
    refused_products: Sequence[RefusedProduct]
    outcomes: Sequence[Outcome]
    seconds: float
    audit: Audit | None
    disagreements: Sequence[str]

    def content(self) -> dict[str, Any]:
        """All of it, for JSON. Amounts of accepted orders are integers; of refused ones text, for they need not be."""
        accepted = [outcome for outcome in self.outcomes if outcome.accepted]
        refused = [outcome for outcome in self.outcomes if not outcome.accepted]
        return {
            "run": self.run,
            "trade": self.trade.name,
            "currency": self.trade.currency,
            "speed_up": self.speed_up,
            "concurrency": self.concurrency,
            "seconds": round(self.seconds, 3),
            "orders_per_second": round(len(self.outcomes) / self.seconds, 1) if self.seconds else None,
            "answer_ms": _quantiles([outcome.answer_seconds for outcome in accepted]),
            "late_ms": _quantiles([outcome.late_seconds for outcome in self.outcomes]) if self.speed_up else None,
            "late_orders": sum(outcome.late_seconds > 0.1 for outcome in self.outcomes) if self.speed_up else None,
            "products": {
                "sent": len(self.trade.products),
                "refused": [asdict(product) for product in self.refused_products],
            },
            "orders": {
                "sent": len(self.outcomes),
                "lines": sum(len(outcome.order.lines) for outcome in self.outcomes),
                "asked_again": sum(outcome.attempts - 1 for outcome in self.outcomes),
                "in_the_data": amount_text(_sum(outcome.order.total for outcome in self.outcomes)),
                "accepted": self._accepted(accepted),
                "refused_by_code": dict(Counter(str(outcome.code) for outcome in refused)),
                "refused": [
                    {
                        "reference": outcome.order.reference,
                        "status": outcome.status,
                        "code": outcome.code,
                        "reasons": outcome.reasons,
                        "total": amount_text(outcome.order.total),
                    }
                    for outcome in refused
                ],
            },
            "audit": None if self.audit is None else asdict(self.audit),
            "disagreements": list(self.disagreements),
        }

    def _accepted(self, accepted: Sequence[Outcome]) -> dict[str, Any]:
        adjustments: Counter[str] = Counter()
        for outcome in accepted:
            for adjustment in outcome.order.adjustments:
                adjustments[adjustment.kind] += adjustment.amount
        return {
            "orders": len(accepted),
            "replayed": sum(outcome.replayed for outcome in accepted),
            "lines": sum(outcome.item_count or 0 for outcome in accepted),
            "gross": int(_sum(outcome.order.gross for outcome in accepted)),
            **adjustments,
            "net": int(_sum(outcome.order.total for outcome in accepted)),
            "net_answered": sum(outcome.total_amount or 0 for outcome in accepted),
        }

    def show(self, console: Console) -> None:
        """The table, the first refusals and the first disagreements."""
        content = self.content()
        table = Table(box=None, show_header=False)
        for name, value in _figures(content):
            table.add_row(name, value)
        console.print(table)
        for title, lines in (
            ("Refused products", _refusals(content["products"]["refused"], "code", "problem")),
            ("Refused orders", _refusals(content["orders"]["refused"], "reference", "code")),
            ("Disagreements", content["disagreements"]),
        ):
            if lines:
                console.print(f"\n{title}: {len(lines):,}", highlight=False)
                for line in lines[:SHOWN_MAX]:
                    console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
                if len(lines) > SHOWN_MAX:
                    console.print(f"  … and {len(lines) - SHOWN_MAX:,} more (--json has them all)", highlight=False)


def _figures(content: dict[str, Any]) -> list[tuple[str, str]]:
    orders, accepted, audit = content["orders"], content["orders"]["accepted"], content["audit"]
    pace = "as fast as possible" if content["speed_up"] is None else f"{content['speed_up']:,.10g} times as fast"
    refused = ", ".join(f"{count:,} {code}" for code, count in orders["refused_by_code"].items()) or "0"
    amounts = {name: value for name, value in accepted.items() if name not in {"orders", "replayed", "lines"}}
    found = [
        ("run", f"{content['run']}: {content['trade']}, {pace}, {content['concurrency']} at once"),
        ("sent", f"{orders['sent']:,} orders, {orders['lines']:,} lines, {content['products']['sent']:,} products"),
        ("rate", f"{content['orders_per_second'] or 0:,.1f} orders/s for {content['seconds']:,.1f} s"),
        ("answered in", f"{_times(content['answer_ms'])}; {orders['asked_again']:,} asked again"),
        *([("late", f"{content['late_orders']:,} orders; {_times(content['late_ms'])}")] if content["late_ms"] else []),
        ("accepted", f"{accepted['orders']:,} orders, {accepted['lines']:,} lines ({accepted['replayed']:,} replayed)"),
        *((name.replace("_", " "), f"{_major(value)} {content['currency']}") for name, value in amounts.items()),
        ("refused", refused),
    ]
    if audit is not None:
        found.append(
            (
                "audited",
                f"{audit['orders']:,} orders, {audit['lines']:,} lines, {audit['events']:,} events on Kafka"
                f" ({audit['repeated_events']:,} twice), stock of {audit['products_in_stock']:,} products,"
                f" {audit['products_copied']:,} copies of products",
            )
        )
    found.append(("disagreements", f"{len(content['disagreements']):,}"))
    return found


def _refusals(refused: Sequence[dict[str, Any]], name: str, code: str) -> list[str]:
    return [f"{one[name]}: {one['status']} {one[code]}; {'; '.join(one['reasons'][:1])}" for one in refused]


def _times(quantiles: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:,.1f}" for name, value in quantiles.items()) + " ms"


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """Nearest rank, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        name: round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000, 2) for name, share in QUANTILES.items()
    }


def _sum(amounts: Any) -> Decimal:
    return sum(amounts, Decimal(0))


def _major(minor: int) -> str:
    """Both data sets are of currencies with two decimals."""
    sign, units = "-" if minor < 0 else "", abs(minor)
    return f"{sign}{units // 100:,}.{units % 100:02}"
