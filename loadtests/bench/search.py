"""Search and lists of many products, in the database: `python -m loadtests.bench.search [--products 100000]`.

Embedded PostgreSQL with every durability setting on, and made-up products named as shops name them. Every kind of
question is asked as catalog-api asks it, over one connection with its settings. Times are the statement's, all of it:
over a Unix socket, with its rows; planning is not in them, as a process has each plan kept. CPU is the server's, which
others on the machine change less than the clock.
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import psutil

from services.catalog import queries
from services.catalog.repository import LIST_BY_NAME, LIST_NEWEST, SEARCH
from services.cli.up import prepare
from services.common.db import Database, Statement, statement
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

# How things look, what they are, and what is on them: blocks of words.
LOOKS, KINDS, EXTRAS = (
    block.split() for block in Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split("\n\n")
)
CURRENCIES: Final = ("USD", "USD", "USD", "EUR", "GBP")
COPIED: Final = 10_000  # rows a COPY
WARM: Final = 10  # questions before those that are timed
BACKEND: Final = statement("backend", "SELECT pg_backend_pid() AS pid", {})


def generated(count: int) -> list[tuple[object, ...]]:
    """Products, the same each time."""
    chance = random.Random("search")
    found: list[tuple[object, ...]] = []
    for number in range(count):
        words = [*chance.sample(LOOKS, chance.choice((1, 1, 2))), *chance.sample(EXTRAS, chance.choice((0, 0, 1)))]
        name = " ".join([*words, chance.choice(KINDS), *([f"{number:06d}"] if chance.random() < 0.5 else [])])
        description = " ".join(chance.choices(LOOKS + KINDS + EXTRAS, k=chance.randrange(0, 60)))
        product_id = UUID(int=(1_700_000_000_000 + number) << 80 | 7 << 76 | 2 << 62 | chance.getrandbits(62))
        active, price = chance.random() < 0.9, chance.randrange(99, 20_000)
        found.append((product_id, name, description, price, chance.choice(CURRENCIES), active, 1))
    return found


def say(line: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def misspelled(word: str, chance: random.Random) -> str:
    """`word` with one letter left out, doubled, replaced or swapped with the next."""
    at = chance.randrange(1, len(word) - 1)
    return chance.choice(
        (
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + chance.choice("aeioustrn") + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        )
    )


def questions(names: list[str], chance: random.Random) -> dict[str, Callable[[], str]]:
    """What is asked, by kind."""
    long = [word for word in LOOKS + KINDS + EXTRAS if len(word) >= 5]
    return {
        "exact name": lambda: chance.choice(names),
        "one word": lambda: chance.choice(KINDS),
        "two words": lambda: f"{chance.choice(LOOKS)} {chance.choice(KINDS)}",
        "prefix of 3": lambda: chance.choice(long)[:3],
        "prefix of 2": lambda: chance.choice(long)[:2],
        "typo": lambda: misspelled(chance.choice(long), chance),
        "two words, both wrong": lambda: (
            f"{misspelled(chance.choice(long), chance)} {misspelled(chance.choice(long), chance)}"
        ),
        "nothing found": lambda: "".join(chance.choices("qxzjvk", k=8)),
        "stop words": lambda: " ".join(chance.sample(("the", "of", "and", "a", "with", "in"), 3)),
        "200 characters": lambda: " ".join(chance.choices(LOOKS + KINDS + EXTRAS, k=40))[:200],
        "any of 20 words": lambda: " or ".join(chance.sample(KINDS, 20)),
    }


@dataclass(frozen=True)
class Asked:
    """A connection, and the server's process behind it."""

    database: Database
    backend: psutil.Process

    async def tell(self, name: str, statement: Statement, values: Callable[[], dict[str, Any]], times: int) -> None:
        """Ask so often, once it is warm, and say how long it took: by the clock, and in the server's CPU."""
        seconds = []
        for number in range(-WARM, times):
            if number == 0:
                before = sum(self.backend.cpu_times()[:2])
            given = values()
            started = time.perf_counter()
            await self.database.rows(statement, **given)
            seconds.append(time.perf_counter() - started)
        cpu_ms = (sum(self.backend.cpu_times()[:2]) - before) / times * 1000
        cuts = [cut * 1000 for cut in statistics.quantiles(seconds[WARM:], n=100)]
        say(f"{name:38} p50 {cuts[49]:6.2f} ms   p99 {cuts[98]:6.2f} ms   CPU {cpu_ms:6.2f} ms")


async def main(products: int, times: int) -> None:
    """Load, ask, tell."""
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url="127.0.0.1:1")
        async with Stack(settings, processes=(), prepare=prepare) as stack:
            rows = generated(products)
            await load(stack.addresses.postgres, rows)
            database = Database(
                stack.addresses.postgres, application_name="bench", size_max=1, settings=queries.SESSION
            )
            await database.open()
            try:
                (row,) = await database.rows(BACKEND)
                await measure(Asked(database, psutil.Process(row["pid"])), rows, times)
            finally:
                await database.close()


async def load(url: str, rows: list[tuple[object, ...]]) -> None:
    """The products are in the catalogue."""
    connection = await asyncpg.connect(url)
    started = time.perf_counter()
    columns = ["product_id", "name", "description", "price", "currency", "active", "version", "updated_at"]
    now = await connection.fetchval("SELECT now()")
    for first in range(0, len(rows), COPIED):
        await connection.copy_records_to_table(
            "products",
            schema_name="catalog",
            columns=columns,
            records=[(*row, now) for row in rows[first : first + COPIED]],
        )
    say(f"{len(rows):,} products loaded in {time.perf_counter() - started:.1f} s")
    await connection.execute("VACUUM (ANALYZE) catalog.products")
    for row in await connection.fetch(
        "SELECT relname, pg_size_pretty(pg_relation_size(oid)) AS size FROM pg_class"
        " WHERE relname IN ('products', 'pk_products') AND relnamespace = 'catalog'::regnamespace"
        " OR relname LIKE 'ix_products_%'"
    ):
        say(f"  {row['relname']:24} {row['size']}")
    await connection.close()


async def measure(asked: Asked, rows: list[tuple[object, ...]], times: int) -> None:
    """Every kind of question, and every list."""
    chance = random.Random("questions")
    everything: dict[str, Any] = {"active": True, "currency": None, "price_from": None, "price_to": None}
    names = [str(row[1]) for row in rows]
    for name, question in questions(names, chance).items():

        def values(question: Callable[[], str] = question) -> dict[str, Any]:
            return {
                **everything,
                "q": question(),
                "limit": 20,
                "candidates": queries.CANDIDATES_MAX,
                "spelled_characters": queries.SPELLED_CHARACTERS_MAX,
            }

        await asked.tell(f"search: {name}", SEARCH, values, times)
    dear: dict[str, Any] = {"currency": "EUR", "price_from": 19_990, "price_to": 20_000}
    for name, filters, walk in (("all", {}, 21), ("one in 10,000", dear, queries.WALK_MAX)):
        for listing in (LIST_NEWEST, LIST_BY_NAME):

            def listed(filters: dict[str, Any] = filters, walk: int = walk) -> dict[str, Any]:
                return {
                    **everything,
                    **filters,
                    "from_id": chance.choice(rows)[0],
                    "from_name": chance.choice(names).lower(),
                    "after_id": None,
                    "walk": walk,
                    "limit": 21,
                }

            await asked.tell(f"{listing.name}: {name}", listing, listed, times)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--products", type=int, default=100_000)
    parser.add_argument("--times", type=int, default=300)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.products, arguments.times))
