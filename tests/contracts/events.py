"""Events held against their schemas, as who writes them must: nothing but what the schema names, of the right form."""

import copy
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker  # type: ignore[import-untyped] # it ships no types

from services.contracts.schema import Schema, inlined, load_all

MAJOR = "v1"


@cache
def schemas() -> dict[str, Schema]:
    """Of all events, by type and major version."""
    return load_all()


def validator(schema: Schema) -> Any:
    """As a consumer reads: what it does not know is ignored."""
    return Draft202012Validator(schema, format_checker=FormatChecker())


def closed(schema: Schema) -> Schema:
    """The schema for who writes: an object has the members that it names, and no other."""
    made = inlined(copy.deepcopy(schema))

    def close(node: Any) -> None:
        if isinstance(node, list):
            for child in node:
                close(child)
        if not isinstance(node, dict):
            return
        if node.get("type") == "object":
            node["additionalProperties"] = False
        for keyword, child in node.items():
            if keyword not in ("examples", "enum", "const"):
                close(child)

    close(made)
    return made


@cache
def _writing(name: str) -> Any:
    return validator(closed(schemas()[name]))


def check(event: dict[str, Any]) -> None:
    """AssertionError when `event` is not one that we may write."""
    name = f"{event['type']}.{MAJOR}"
    assert name in schemas(), f"{event['type']} has no schema"
    errors = [f"{error.json_path}: {error.message}" for error in _writing(name).iter_errors(event)]
    assert not errors, "\n".join((f"{event}", *errors))
