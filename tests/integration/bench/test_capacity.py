"""`orders bench capacity`, quickly: that it runs, counts what it does, and that sums can be made with it."""

from pathlib import Path

import orjson

from loadtests.bench import capacity_run
from loadtests.bench.capacity import main
from loadtests.bench.capacity_figures import OF_ORDERS, OF_READS
from loadtests.bench.capacity_tables import document
from services.contracts.envelope import ORDERS_TOPIC, PAYMENTS_TOPIC


async def test_what_is_measured_is_what_was_done(tmp_path: Path) -> None:
    measured = orjson.loads(orjson.dumps(await capacity_run.measured(capacity_run.QUICK)))

    operations, orders = measured["operations"], f"messages {ORDERS_TOPIC}"
    assert set(operations) == {*OF_ORDERS, *OF_READS, "place, followed"}
    for name in ("place", "ship", "deliver", "cancel"):  # one event each, and nothing of anybody else
        assert operations[name][orders] == 1
        assert f"messages {PAYMENTS_TOPIC}" not in operations[name]
    assert operations["place, paid"][orders] == 3  # placed, authorised, confirmed
    assert operations["ship, paid"][orders] == 2  # shipped, captured
    for name in OF_ORDERS:
        assert operations[name]["first_full_page_bytes"] > 0
    assert measured["tables"].keys() >= {"orders.order_events"}
    assert "| `orders-api` |" in document(measured)["capacity: memory"]

    (tmp_path / "measured.json").write_bytes(orjson.dumps(measured))
    assert main(["--table", "--measured", str(tmp_path / "measured.json")]) == 2  # a quick run is not kept
