"""Every hot statement at several sizes of the same schema: what grows with the orders there are, and by how much."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from loadtests.bench import commanding, database, loaded
from loadtests.bench.commanding import Command
from loadtests.bench.loaded import Past
from loadtests.bench.measure import Comparison, Phase, Side
from loadtests.bench.stage import PRODUCTS, STOCK, Stage, offering
from services.common import clock

_QUICK_SIZES: Final = (50, 100)
_MONTHS, _QUICK_MONTHS = 12, 2

_STATEMENTS: Final[dict[str, Callable[[str, str, Past], Side]]] = {
    "get": lambda url, name, past: loaded.side(url, name, loaded.get(past)),
    "list": lambda url, name, past: loaded.side(url, name, loaded.newest(past)),
    "status": lambda url, name, past: loaded.side(url, name, loaded.newest(past, loaded.STATUS)),
    "replay": lambda url, name, past: loaded.side(url, name, loaded.replay(past)),
    "stock": lambda url, name, past: loaded.side(url, name, loaded.stock(past)),
    "place": lambda url, name, _: database.placing(url, name=name),
}


async def comparisons(stage: Stage) -> list[Comparison]:
    """The largest size against each smaller one; each is a database of its own on the same server."""
    pasts = {}
    months = _QUICK_MONTHS if stage.quick else _MONTHS
    for size in sorted(_QUICK_SIZES if stage.quick else stage.sizes, reverse=True):
        past = Past(size, months, clock.now())
        url = await stage.fresh_database(f"bench_flat_{size}")
        connection = await stage.connected(url)
        for month in range(months + 1):
            await connection.execute("SELECT orders.create_month($1)", clock.add_months(past.first, month).date())
        await connection.execute(offering(PRODUCTS, STOCK))
        await connection.execute(commanding.RESERVE)
        await loaded.load(connection, "orders", past)
        pasts[url] = past
    return [
        *(
            Comparison(
                f"flatness {name}",
                "statements",
                [statement(url, _name(past), past) for url, past in pasts.items()],
                partial(_found, stage, pasts),
            )
            for name, statement in _STATEMENTS.items()
        ),
        *(  # last, as they change what the others read
            Comparison(
                f"flatness {command.name}",
                "commands",
                [commanding.side(url, _name(past), past, command) for url, past in pasts.items()],
                partial(_found, stage, pasts, command=command),
            )
            for command in (commanding.CANCEL, commanding.SHIP)
        ),
    ]


def _name(past: Past) -> str:
    return f"{past.orders:,} orders"


async def _found(
    stage: Stage, pasts: Mapping[str, Past], turns: Sequence[Phase], command: Command | None = None
) -> dict[str, Any]:
    """How large each database is, and what the command has left there."""
    sizes, written = {}, {}
    for url, past in pasts.items():
        connection = await stage.connected(url)
        sizes[_name(past)] = await connection.fetchval("SELECT pg_database_size(current_database())")
        if command:
            written[_name(past)] = await commanding.written(connection, command, turns, _name(past))
        await connection.close()
    return {"bytes": sizes, "written": written}
