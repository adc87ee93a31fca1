"""Which change of a released schema is refused, and why; and that what is allowed changes the verdict on no event."""

import copy
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types
from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped] # the same

from services.contracts.compatibility import breaking
from services.contracts.schema import Schema, inlined
from tests.contracts.events import validator

ID = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"
TIME = {"type": "string", "pattern": "^2"}
RELEASED: Schema = {
    "type": "object",
    "required": ["id", "kind", "data"],
    "properties": {
        "id": {"type": "string", "format": "uuid"},
        "kind": {"enum": ["tax", "fee"]},
        "note": {"type": "string", "maxLength": 9},
        "data": {
            "type": "object",
            "required": ["amount"],
            "properties": {
                "amount": {"type": "integer", "minimum": 0, "maximum": 99},
                "at": {"anyOf": [{"$ref": "#/$defs/time"}, {"type": "null"}]},
                "lines": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"n": {}}}},
            },
        },
    },
    "examples": [],
    "$defs": {"time": TIME},
}
REMOVED = object()


def changed(schema: Schema, *changes: tuple[str, Any]) -> Schema:
    """A copy with these values at these places."""
    made = copy.deepcopy(schema)
    for path, value in changes:
        *way, last = path.split("/")
        node: Any = made
        for step in way:
            node = node[step]
        if value is REMOVED:
            del node[last]
        else:
            node[last] = value
    return made


DATA = "properties/data"
OPEN = {"type": "string"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # what an older consumer could not read
        ([("properties/note", REMOVED)], "e/note: removed; older consumers read it"),
        ([(f"{DATA}/properties/lines/items/properties/n", REMOVED)], "e/data/lines/items/n: removed"),
        ([("properties/note/type", "integer")], 'e/note: retyped, from "string" to "integer"'),
        ([("properties/note/type", ["string", "null"])], "e/note: retyped"),
        ([("properties/note/type", REMOVED)], 'e/note: retyped, from "string" to nothing'),
        ([("required", ["id", "kind"])], "e/data: not required any more; older consumers rely on it"),
        ([(f"{DATA}/required", REMOVED)], "e/data/amount: not required any more"),
        ([("properties/kind/enum", ["tax", "fee", "gift"])], 'e/kind: enum widened by "gift"; older consumers'),
        ([(f"{DATA}/properties/amount/maximum", 100)], "e/data/amount: maximum changed, from 99 to 100"),
        ([(f"{DATA}/properties/amount/minimum", REMOVED)], "e/data/amount: minimum changed, from 0 to nothing"),
        ([("properties/note/maxLength", 10)], "e/note: maxLength changed"),
        ([(f"{DATA}/properties/lines/minItems", 0)], "e/data/lines: minItems changed"),
        ([("properties/id/format", REMOVED)], 'e/id: format changed, from "uuid" to nothing'),
        # what the log has, and a newer consumer would refuse
        ([("required", ["id", "kind", "data", "note"])], "e/note: required now; events in the log lack it"),
        ([("required", ["id", "kind", "data", "new"]), ("properties/new", OPEN)], "e/new: required now"),
        ([("properties/kind/enum", ["tax"])], 'e/kind: enum narrowed by "fee"; events in the log have it'),
        ([(f"{DATA}/properties/amount/maximum", 98)], "e/data/amount: maximum changed, from 99 to 98"),
        ([(f"{DATA}/properties/amount/multipleOf", 5)], "e/data/amount: multipleOf changed, from nothing to 5"),
        ([("properties/id/pattern", "^0")], 'e/id: pattern changed, from nothing to "^0"'),
        ([("additionalProperties", False)], "e: additionalProperties changed, from nothing to false"),
        ([("properties/kind/const", "tax")], "e/kind: const changed"),
        ([("$defs/time/pattern", "^1")], 'e/data/at/anyOf/0: pattern changed, from "^2" to "^1"'),
        ([(f"{DATA}/properties/at/anyOf", [{"type": "null"}])], "e/data/at: anyOf changed"),
        ([("properties/kind/enum", REMOVED), ("properties/kind/type", "string")], "e/kind: enum changed"),
        ([("properties/note", False)], "e/note: was"),
        # what breaks nobody
        ([("properties/new", OPEN)], None),
        ([(f"{DATA}/properties/new", {"type": "object", "required": ["x"], "properties": {"x": OPEN}})], None),
        ([(f"{DATA}/properties/lines/items/properties/new", OPEN)], None),
        ([("properties/note/description", "said better"), ("title", "e"), ("$id", "urn:e")], None),
        ([("properties/note/deprecated", True)], None),
        ([("examples", [1])], None),
        ([("required", ["data", "kind", "id"]), ("properties/kind/enum", ["fee", "tax"])], None),
        ([(f"{DATA}/properties/at/anyOf", [TIME, {"type": "null"}]), ("$defs", REMOVED)], None),
    ],
)
def test_a_change_is_refused_with_its_reason_or_allowed(changes: list[tuple[str, Any]], reason: str | None) -> None:
    current = changed(RELEASED, *changes)
    assert current != RELEASED
    found = breaking({"e": RELEASED}, {"e": current})
    if reason is None:
        assert found == []
    else:
        assert [line for line in found if line.startswith(reason)], found


def test_a_type_may_come_but_not_go() -> None:
    assert breaking({}, {"e": RELEASED}) == []
    assert breaking({"e": RELEASED}, {}) == ["e: removed; consumers wait for it, and the log has it"]
    assert breaking({"e": RELEASED}, {"e": RELEASED, "f": RELEASED}) == []


def test_true_is_not_one() -> None:
    assert breaking({"e": {"const": True}}, {"e": {"const": 1}})


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}},
        {"$ref": "other.json"},
        {"$ref": "#/$defs/a", "minimum": 1, "$defs": {"a": {}}},
    ],
    ids=["circle", "elsewhere", "more beside it"],
)
def test_a_reference_that_cannot_be_inlined_is_refused(schema: Schema) -> None:
    with pytest.raises(ValueError, match="cannot be inlined"):
        inlined(schema)


def places(node: Any, *way: str | int) -> Iterator[tuple[str | int, ...]]:
    """The ways to all places below a JSON value."""
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield (*way, key)
        yield from places(child, *way, key)


VALUES: list[Any] = [None, 1, 99, "string", ["integer"], {}]
KEYWORDS: list[Schema] = [
    *({"maxLength": 3}, {"minimum": 1}, {"type": "string"}, {"enum": ["tax"]}, {"description": "x"}),
    *({"enum": ["tax", "fee", "string"]}, {"required": ["id", "kind"]}, {"required": []}),
    *({"required": ["id", "kind", "data", "note"]}, {"required": ["amount", "lines"]}, {"additionalProperties": False}),
    *({"minItems": 2}, {"items": {"type": "null"}}, {"properties": {"note": False}}, {"const": 1}, {"pattern": "^x"}),
]


def mutated(document: Any, more: Sequence[Schema] = ()) -> Iterator[Any]:
    """The document with one place gone, changed, or (an object) with `more` of keywords, in every way there is."""
    for way in places(document):
        for value in (REMOVED, *VALUES, *more):
            made = copy.deepcopy(document)
            holder, last = reduce(getitem, way[:-1], made), way[-1]
            if value is REMOVED:
                del holder[last]
            elif isinstance(value, dict) and isinstance(holder[last], dict):
                holder[last] |= value
            else:
                holder[last] = value
            yield made


def is_schema(value: Schema) -> bool:
    try:
        Draft202012Validator.check_schema(value)
        inlined(value)
    except (SchemaError, ValueError):
        return False
    return True


def test_no_event_is_judged_otherwise_after_a_change_that_is_allowed() -> None:
    whole = {"id": ID, "kind": "fee", "note": "n", "data": {"amount": 1, "at": "2026", "lines": [{"n": 1}]}}
    events = [whole, *mutated(whole)]
    verdicts = [validator(RELEASED).is_valid(event) for event in events]
    assert 10 < sum(verdicts) < len(verdicts) - 10
    allowed = harmful = 0
    without = {keyword: value for keyword, value in RELEASED.items() if keyword != "examples"}
    for current in (made["e"] for made in mutated({"e": without}, KEYWORDS) if "e" in made):
        if not is_schema(current):
            continue
        same = [validator(current).is_valid(event) for event in events] == verdicts
        if not breaking({"e": RELEASED}, {"e": current}):
            assert same, current
            allowed += 1
        else:
            harmful += not same
    assert allowed > 10
    assert harmful > 100, harmful
