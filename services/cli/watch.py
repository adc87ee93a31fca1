"""`orders watch`: one order's events as they come, over WebSocket."""

import asyncio
import sys
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from services.cli.tail import told
from services.cli.target import FAILED
from services.cli.token import minted
from services.common.stream import MESSAGE_BYTES_MAX
from services.contracts.orders import OrderStatus
from services.embedded.settings import HOST, REALTIME, StackSettings

# Nothing happens to an order after these, but for what a customer sends back.
ENDED: Final = frozenset({OrderStatus.DELIVERED, OrderStatus.RETURNED, OrderStatus.CANCELLED})
FRAME_BYTES_MAX: Final = 2 * MESSAGE_BYTES_MAX
OPEN_SECONDS: Final = 5.0
PAUSE_SECONDS: Final = 0.5  # before connecting again
TRIES_MAX: Final = 20  # in vain, one after the other

console = Console(stderr=True)


class RefusedError(Exception):
    """The gateway says that this order cannot be followed."""


def watch(
    order_id: Annotated[str, typer.Argument(help="The order's id, a ULID.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for a program.")] = False,
    after_version: Annotated[int, typer.Option(min=0, help="Only what came after this version.")] = 0,
) -> None:
    """Print the events of an order as they come, until it is delivered, returned or cancelled, or Ctrl-C.

    Exit code 1: there is no such order. 2: the gateway of the stack in ORDERS_HOME does not answer.
    """
    try:
        asyncio.run(_watch(order_id, after_version=after_version, json=json))
    except RefusedError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from None
    except OSError as error:
        console.print(f"The gateway does not answer: {error}", style="red", markup=False, highlight=False)
        raise typer.Exit(FAILED) from None
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit(0) from None


async def _watch(order_id: str, *, after_version: int, json: bool) -> None:
    settings, person = StackSettings(), str(uuid.uuid4())

    def token() -> str:
        return minted(settings, sub=person, scope="orders:read orders:read:any", hours=1)

    url = f"ws://{HOST}:{settings.port(REALTIME)}"
    async with aclosing(events(url, token, order_id, after_version=after_version)) as coming:
        async for event in coming:
            sys.stdout.write((orjson.dumps(event).decode() if json else told(event)) + "\n")
            sys.stdout.flush()
            if event["data"]["after"]["status"] in ENDED:
                return


async def events(
    url: str, token: Callable[[], str], order_id: str, *, after_version: int = 0
) -> AsyncGenerator[dict[str, Any]]:
    """The order's events after that version, each once and in order, whatever becomes of the connection meanwhile.

    RefusedError when it cannot be followed; OSError when the gateway cannot be reached for ten seconds or so.
    """
    version, failures = after_version, 0
    while True:
        try:
            async with connect(
                f"{url}/v1/stream",
                subprotocols=[Subprotocol("orders.v1"), Subprotocol(f"bearer.{token()}")],
                max_size=FRAME_BYTES_MAX,
                open_timeout=OPEN_SECONDS,
                compression=None,
            ) as socket:
                await socket.send(
                    orjson.dumps({"subscribe": {"order_id": order_id, "after_version": version}}).decode()
                )
                try:
                    async for text in socket:
                        message = orjson.loads(text)
                        if "error" in message:
                            raise RefusedError(f"{message['error']['code']}: {message['error']['detail']}")
                        if "version" in message:
                            version, failures = message["version"], 0
                            yield message
                finally:
                    await socket.close()  # as whoever has seen enough: leaving by an exception would say 1011
        except (ConnectionClosed, InvalidHandshake, OSError) as error:  # OSError: TimeoutError, too
            failures += 1
            if failures > TRIES_MAX:
                raise OSError(str(error)) from error
        await asyncio.sleep(PAUSE_SECONDS)
