"""An edge before an origin that is the catalogue's and another that is that of orders."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.edge import Origin, Running, running
from tests.serving import serving


@dataclass
class Scene:
    """The catalogue's origin lets everybody keep its answers, that of orders nobody."""

    edge: Running
    catalog: Origin
    orders: Origin


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    """One that keeps nothing yet."""
    catalog, orders = Origin(), Origin(headers={"Cache-Control": "private, no-store"})
    async with (
        serving(catalog) as catalog_port,
        serving(orders) as orders_port,
        running(tmp_path, {"catalog": catalog_port, "orders": orders_port}) as edge,
    ):
        yield Scene(edge, catalog, orders)
