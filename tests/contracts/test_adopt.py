"""docs/adopt.md: each slice is what it says, stands alone, and names what there is."""

import asyncio
import re
import shutil
import sys
from pathlib import Path

from services.cli import adopt

ROOT = adopt.FILE.parents[1]
DOCUMENT = adopt.FILE.read_text(encoding="utf-8")


def listed(name: str) -> set[Path]:
    """The files that the document has of a slice."""
    block = DOCUMENT.partition(f"<!-- make adopt: {name} -->\n")[2].partition("<!-- end")[0]
    lines = re.findall(r"^- `(services/[a-z/]+)/`: (.+)$", block, re.MULTILINE)
    return {Path(folder) / file for folder, files in lines for file in files.split(", ")}


def test_the_committed_lists_are_what_the_code_imports() -> None:
    assert adopt.rendered(DOCUMENT) == DOCUMENT, "run `make adopt`"


async def test_the_files_of_a_slice_are_enough_for_it(tmp_path: Path) -> None:
    await asyncio.gather(*(_imported_alone(name, tmp_path / name) for name in adopt.SLICES))


async def _imported_alone(name: str, copy: Path) -> None:
    files = listed(name)
    packages = {folder / "__init__.py" for each in files for folder in each.parents if folder.name}
    for file in files | packages:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    imports = f"import {', '.join(adopt.SLICES[name])}, services; print(services.__file__)"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", imports),
        cwd=copy,
        env={"PYTHONPATH": str(copy)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, f"{name}: {err.decode()}"
    assert out.decode().startswith(str(copy)), "it was not the copy that was imported"


def test_every_file_the_document_names_is_there() -> None:
    paths = set(re.findall(r"`((?:services|tests)/[\w/]+(?:\.py)?)`", DOCUMENT)) | {
        f"docs/{link}" for link in re.findall(r"\]\(([\w./-]+)\)", DOCUMENT)
    }
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_function_and_table_the_document_names_is_there() -> None:
    code = "".join(file.read_text() for folder in ("services", "migrations") for file in (ROOT / folder).rglob("*.py"))
    names = set(re.findall(r"`(?:orders\.|catalog\.|relay\.)?([a-z]+_[a-z_]+|[A-Z][A-Z_]+[A-Z])`", DOCUMENT))
    assert {"place_order", "create_month", "CREATE_MONTH", "idempotency_keys"} <= names
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", code)] == []
