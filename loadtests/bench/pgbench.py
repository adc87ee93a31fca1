"""`pgbench`: a statement of ours in the database alone, without Python and HTTP. It comes with the embedded server.

`-M prepared`, as asyncpg runs it, with the planner's settings of our own sessions. pgbench draws numbers only: ids are
put together from them in SQL (`numbered`), in the place of the statement's parameters; all else of it is as it is.
"""

import asyncio
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from loadtests.bench.machine import programs_cpu
from loadtests.bench.measure import PERCENTILES, Side, VoidError, Work
from services.common.db import SESSION, Statement
from services.embedded.postgres import program

CLIENTS: Final = 16  # as many as wrk's connections
_QUICK: Final = ("-c2", "-t5")  # where pgbench's seconds, which are whole ones, would be too many
_TIME, _FIELDS = 2, 6  # in a line of its log: client, transaction, microseconds, script, when (two)


def script(statement: Statement, values: Mapping[str, str], prologue: Sequence[str] = (), sql: str = "") -> str:
    """What pgbench runs: `statement`, or `sql` made of it, with each parameter replaced by its SQL expression.

    `:name` in an expression is a variable of pgbench, set in the prologue or by -D, and so a parameter again.
    """
    expressions = statement.arguments(values)
    text = re.sub("'[^']*'", _without_colons, sql or statement.sql)
    text = re.sub(r"\$(\d+)", lambda found: f"({expressions[int(found[1]) - 1]})", text)
    return "\n".join([*prologue, f"{text.strip()};", ""])


def _without_colons(literal: re.Match[str]) -> str:
    """The same string: pgbench would take what follows a colon in it for a variable."""
    return "E" + literal[0].replace(":", r"\x3a") if ":" in literal[0] else literal[0]


def variables(names: Sequence[str]) -> dict[str, str]:
    """Each parameter from the variable of its name."""
    return {name: f":{name}" for name in names}


async def pgbench(url: str, scripts: Sequence[str], seconds: float, defined: Mapping[str, object]) -> Work:
    """What CLIENTS clients do, each with any of `scripts` at a time. VoidError when a statement failed.

    Whole seconds, at least one; below that two clients with five transactions each.
    """
    with tempfile.TemporaryDirectory(prefix="pgbench") as folder:
        files = [Path(folder, f"{number}.sql") for number in range(len(scripts))]
        for file, text in zip(files, scripts, strict=True):
            file.write_text(text)
        process = await asyncio.create_subprocess_exec(
            *(str(program("pgbench")), "-n", "-M", "prepared", "-j1", "--log", "--exit-on-abort"),
            *(_QUICK if seconds < 1 else (f"-c{CLIENTS}", f"-T{seconds:.0f}")),
            *(word for name, value in defined.items() for word in ("-D", f"{name}={value}")),
            *(word for file in files for word in ("-f", str(file))),
            url,
            cwd=folder,
            env={**os.environ, "PGOPTIONS": " ".join(f"-c {name}={value}" for name, value in SESSION.items())},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        rate = re.search(r"^tps = ([\d.]+) ", output, re.MULTILINE)
        if process.returncode or rate is None:
            raise VoidError(f"pgbench: {output}")
        taken = sorted(_logged(Path(folder)))
    latencies = tuple(taken[min(int(len(taken) * p / 100), len(taken) - 1)] / 1000 for p in PERCENTILES)
    return Work(len(taken), len(taken) / float(rate[1]), latencies)


def _logged(folder: Path) -> list[int]:
    """Microseconds of each transaction."""
    found = []
    for file in folder.glob("pgbench_log.*"):
        for line in file.read_text().splitlines():
            words = line.split()
            if len(words) != _FIELDS:
                raise VoidError(f"pgbench logged: {line}")
            found.append(int(words[_TIME]))
    return found


def reading(
    url: str,
    name: str,
    statement: Statement,
    values: Mapping[str, str],
    defined: Mapping[str, object],
    prologue: Sequence[str] = (),
    sql: str = "",
) -> Side:
    """A statement that reads, see `script`; pgbench's own CPU is that of its process.

    VoidError when it finds nothing: its parameters then are not those of any row.
    """
    text = script(statement, values, prologue, sql)
    head, body = "\n".join(prologue), text.removeprefix("\n".join([*prologue, ""])).strip().removesuffix(";")
    proof = f"{head}\nSELECT 1 / count(*) FROM ({body}) found;\n"  # division by zero
    proved = False

    async def run(seconds: float) -> Work:
        nonlocal proved
        if not proved:
            await pgbench(url, [proof], 0, defined)
            proved = True
        return await pgbench(url, [text], seconds, defined)

    return Side(name, run, programs_cpu)
