"""`python -m services.cli.adopt` writes into docs/adopt.md which files and packages each slice consists of.

They are what its entry modules import, and what that imports, as `grimp` finds it (it comes with import-linter).
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import grimp

from services.cli.marked import replaced

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "adopt.md"

# What of each slice is started or called; everything else follows.
SLICES: Final[Mapping[str, tuple[str, ...]]] = {
    "idempotent placement": ("services.orders.commands",),
    "outbox and relay": ("services.relay.main", "services.relay.tables"),
    "inbox consumer": ("services.common.consumer", "services.common.inbox", "services.common.process"),
    "lease cache": ("services.common.caches",),
    "partition keeper": ("services.common.clock", "services.common.db", "services.common.process"),
}


def closures() -> dict[str, tuple[list[str], list[str]]]:
    """Of each slice its own modules and the packages they import, sorted."""
    graph = grimp.build_graph("services", include_external_packages=True)
    found = {}
    for name, entries in SLICES.items():
        every = set(entries).union(*(graph.find_upstream_modules(entry) for entry in entries))
        ours = {module for module in every if module.startswith("services")}
        packages = {module for module in every - ours if module not in sys.stdlib_module_names}
        found[name] = sorted(ours), sorted(packages)
    return found


def rendered(document: str) -> str:
    """The document with each list as the code has it."""
    for name, (modules, packages) in closures().items():
        document = replaced(document, f"make adopt: {name}", "".join(_lines(modules, packages)))
    return document


def _lines(modules: list[str], packages: list[str]) -> Iterator[str]:
    folders: dict[str, list[str]] = {}
    for module in modules:
        folder, _, file = module.rpartition(".")
        folders.setdefault(folder.replace(".", "/"), []).append(f"{file}.py")
    for folder, files in folders.items():
        yield f"- `{folder}/`: {', '.join(files)}\n"
    yield f"- packages: {', '.join(packages)}\n"


if __name__ == "__main__":
    FILE.write_text(rendered(FILE.read_text(encoding="utf-8")), encoding="utf-8")
