"""`orders tail`: events as consumers get them."""

import asyncio
import sys
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from services.common.stream import Received, StreamError, ensure_topic, reading
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings

console = Console(stderr=True)


def tail(
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="All that is kept, not only what comes.")
    ] = False,
    group: Annotated[str, typer.Option(help="Go on where this consumer group left off.")] = "",
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, for a program.")] = False,
    count: Annotated[int, typer.Option(min=0, help="Stop after so many events; 0 is never.")] = 0,
) -> None:
    """Print the events of orders, in order per order, until Ctrl-C."""
    kafka_url = Addresses.of(StackSettings()).kafka
    try:
        asyncio.run(_tail(kafka_url, from_beginning=from_beginning, group=group or None, json=json, count=count))
    except StreamError as error:
        console.print(f"[red]Kafka at {kafka_url} does not answer: {error}[/]", highlight=False)
        raise typer.Exit(2) from None
    except (KeyboardInterrupt, BrokenPipeError):
        raise typer.Exit(0) from None


async def _tail(kafka_url: str, *, from_beginning: bool, group: str | None, json: bool, count: int) -> None:
    seen = 0
    await ensure_topic(kafka_url, ORDERS_TOPIC)  # it may be that nothing was ever sent
    async with reading(kafka_url, ORDERS_TOPIC, group=group, from_beginning=from_beginning) as messages:
        async for message in messages:
            sys.stdout.write((message.value.decode() if json else line(message)) + "\n")
            sys.stdout.flush()
            seen += 1
            if seen == count:
                return


def line(message: Received) -> str:
    """An event in one line for a person."""
    return told(orjson.loads(message.value))


def told(event: dict[str, Any]) -> str:
    """The same of an event that was read already."""
    after = event["data"]["after"]
    return (
        f"{event['occurred_at']}  {event['order_id']}  v{event['version']:<3} {event['type']:<18} {after['status']:<10}"
        f" {after['total_amount']} {after['currency']}  {event['actor']}"
    )
