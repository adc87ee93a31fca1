"""`orders dead-letters`: what consumers did not understand, and its way back to them."""

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from services.cli.target import FAILED, failures_told
from services.common import dead_letters as letters
from services.common.dead_letters import DeadLetter
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings


def dead_letters(
    topic: Annotated[str, typer.Option(help="Only those of this topic; needed for one of them.")] = "",
    redeliver: Annotated[bool, typer.Option("--redeliver", help="Hand them to their groups again.")] = False,
    partition: Annotated[int | None, typer.Option(min=0, help="Only one: its partition there.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="Only one: its offset there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")] = False,
) -> None:
    """List the dead letters with their reasons, or redeliver those there are now; more may come meanwhile.

    Redelivered ones leave the list; one that is redelivered by partition and offset stays. Safe to run twice.
    Exit code 2: Kafka does not answer, or there is no such dead letter.
    """
    one = partition is not None and offset is not None
    if (partition is None) != (offset is None) or (one and not topic):
        raise typer.BadParameter("one dead letter has --topic, --partition and --offset")
    kafka_url = Addresses.of(StackSettings()).kafka
    with failures_told():
        found = asyncio.run(_found(kafka_url, topic or None, partition if one else None, offset, redeliver=redeliver))
    if one and not found:
        Console(stderr=True).print(f"{topic} has no dead letter {partition}/{offset}.")
        raise typer.Exit(FAILED)
    if as_json:
        for letter in found:
            typer.echo(orjson.dumps(letter))
        return
    table = Table("topic", "partition", "offset", "group", "key", "event", "dead since", "reason", box=None)
    for letter in found:
        shown = ("topic", "partition", "offset", "group", "key", "event", "dead_at", "reason")
        table.add_row(*(str(letter[name]) for name in shown))
    Console().print(table)
    if redeliver:
        typer.echo(f"{len(found)} redelivered")


async def _found(
    kafka_url: str, topic: str | None, partition: int | None, offset: int | None, *, redeliver: bool
) -> list[dict[str, Any]]:
    """What is told of them, without their content."""
    if partition is None:
        if redeliver:
            return [_told(letter) for letter in await letters.redeliver(kafka_url, topic)]
        return [_told(letter) async for letter in letters.dead_letters(kafka_url, topic)]
    async for letter in letters.dead_letters(kafka_url, topic):
        if (letter.partition, letter.offset) == (partition, offset):
            if redeliver:
                await letters.redeliver_these(kafka_url, [letter])
            return [_told(letter)]
    return []


def _told(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    headers = {name: value.decode(errors="backslashreplace") for name, value in message.headers}
    told = {name: value for name, value in asdict(letter).items() if name != "message"}
    return {
        **told,
        "key": (message.key or b"").decode(errors="backslashreplace"),
        "event": f"{headers.get('ce_type', '')} {headers.get('ce_sequence', '').lstrip('0')}".strip(),
        "bytes": len(message.value or b""),
    }
