"""The client in docs/realtime.md, as it stands there."""

import asyncio
import re
import sys
from pathlib import Path

from tests.integration.realtime.conftest import Gateway, Open, Wire
from tests.shop import Shop

DOCUMENT = Path(__file__).parents[3] / "docs" / "realtime.md"


def client(tmp_path: Path) -> Path:
    found = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(found) == 1
    script = tmp_path / "client.py"
    script.write_text(found[0])
    return script


async def started(script: Path, gateway: Gateway, shop: Shop, order_id: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(script), f"ws://127.0.0.1:{gateway.port}", shop.token("orders:read"), order_id),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()


async def test_the_example_follows_an_order_through_a_restart(
    opened: Open, shop: Shop, wire: Wire, tmp_path: Path
) -> None:
    order = await shop.placed()
    async with opened() as gateway:
        process = await started(client(tmp_path), gateway, shop, order["order_id"])
        try:
            assert await line(process) == "1 order.placed confirmed"
            order = (await shop.command(order, "ship")).json()
            await wire.publish(order["order_id"], 2)
            assert await line(process) == "2 order.shipped shipped"
        except BaseException:
            process.kill()
            raise
    try:
        order = (await shop.command(order, "deliver")).json()
        async with opened(port=gateway.port):
            assert await line(process) == "3 order.delivered delivered"
    finally:
        process.kill()
        await process.wait()


async def test_the_example_says_what_is_refused(gateway: Gateway, shop: Shop, tmp_path: Path) -> None:
    process = await started(client(tmp_path), gateway, shop, "01JD5Q0000E2WXGF4K4Z7D3M5T")
    _, told = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, told.decode().strip()) == (1, "There is no such resource, or it is not yours.")
