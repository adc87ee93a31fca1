"""The JSON Schemas of events (2020-12), a file for each type and major version: `schemas/<type>.v<major>.json`.

They are open, as a consumer has to read: a member they do not name is allowed, and to be ignored. The tests hold what
is written against them closed (docs/events.md).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

Schema = dict[str, Any]

FOLDER: Final = Path(__file__).parent / "schemas"
# Keywords that say something to people and refuse no event.
ANNOTATIONS: Final = frozenset({"$schema", "$id", "$comment", "title", "description", "examples", "deprecated"})

_DEFINITION: Final = "#/$defs/"


def load_all(folder: Path = FOLDER) -> dict[str, Schema]:
    """All schemas of a folder by their names, such as `order.placed.v1`."""
    return {path.stem: json.loads(path.read_bytes()) for path in sorted(folder.glob("*.json"))}


def inlined(schema: Schema) -> Schema:
    """The same schema without `$defs`: each reference is replaced by what it refers to.

    ValueError when one leads out of the document, or back to itself, or has keywords beside it that refuse events:
    those could not be merged.
    """
    definitions = schema.get("$defs", {})

    def resolved(node: Any, within: tuple[str, ...]) -> Any:
        if isinstance(node, list):
            return [resolved(child, within) for child in node]
        if not isinstance(node, dict):
            return node
        if not isinstance(reference := node.get("$ref"), str):
            return {name: resolved(child, within) for name, child in node.items() if name != "$defs"}
        name = reference.removeprefix(_DEFINITION)
        beside = {keyword: value for keyword, value in node.items() if keyword != "$ref"}
        if name in within or name not in definitions or beside.keys() - ANNOTATIONS:
            raise ValueError(f"{schema.get('$id')}: {node} cannot be inlined")
        return {**resolved(definitions[name], (*within, name)), **beside}

    result: Schema = resolved(schema, ())
    return result


def example(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The event that a schema gives as its example."""
    event: dict[str, Any] = schema["examples"][0]
    return event
