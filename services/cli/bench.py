"""`orders bench`: measurements against the limit, which are in the repository beside the package."""

import os
import sys
from pathlib import Path

import typer

from services.cli.target import FAILED, console

ROOT = Path(__file__).resolve().parents[2]


def bench(context: typer.Context) -> None:
    """Ours against the limit, alternately in one run: --list shows the rows, --help the options.

    Exit code 2: a row could not be run, or its run is void.
    """
    if not (ROOT / "loadtests" / "bench").is_dir():
        console.print("The benchmarks are not part of the installed package. Run this in a checkout.")
        raise typer.Exit(FAILED)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "loadtests.bench", *context.args]
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})  # noqa: S606 # no shell is wanted
