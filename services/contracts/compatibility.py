"""What may change in the schema of a released event, and what would break somebody.

Both directions count. A consumer that was written against the released schema reads what is written by the current one
(forward: nothing may come that it cannot read). And the log is never rewritten: consumers that are written against the
current schema read events of years ago, from the API and from `orders republish` (backward: nothing that once was
written may be refused). So within a major version the same events stay valid, but for one thing: a new member that may
be missing. An older consumer ignores it, as it has to ignore what it does not know; a newer one does without it in old
events. All else is a new major version, which is another type (docs/events.md).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.contracts.schema import ANNOTATIONS, Schema, inlined

_NESTED = ("items", "additionalProperties", "contains", "propertyNames")  # keywords with one schema
_LISTED = ("anyOf", "oneOf", "allOf")  # keywords with a list of them


def breaking(released: Mapping[str, Schema], current: Mapping[str, Schema]) -> list[str]:
    """What of `current` breaks who relies on `released`, a line each; none when it may be released in its place."""
    found = [f"{name}: removed; consumers wait for it, and the log has it" for name in released.keys() - current.keys()]
    for name in released.keys() & current.keys():
        found += [f"{name}{line}" for line in _differences(inlined(released[name]), inlined(current[name]), "")]
    return sorted(found)


def _differences(released: Any, current: Any, at: str) -> Iterator[str]:
    if not isinstance(released, dict) or not isinstance(current, dict):  # true and false are schemas too
        if _text(released) != _text(current):
            yield f"{at}: was {_text(released)}, is {_text(current)}"
        return
    for keyword in sorted((released.keys() | current.keys()) - ANNOTATIONS):
        was, is_ = released.get(keyword), current.get(keyword)
        if keyword == "properties":
            yield from _members(was or {}, is_ or {}, at)
        elif keyword == "required":
            yield from _required(released, current, at)
        elif keyword == "enum" and was is not None and is_ is not None:
            yield from _enumerated(was, is_, at)
        elif keyword in _NESTED and was is not None and is_ is not None:
            yield from _differences(was, is_, f"{at}/{keyword}")
        elif keyword in _LISTED and was is not None and is_ is not None and len(was) == len(is_):
            for number, (one, other) in enumerate(zip(was, is_, strict=True)):
                yield from _differences(one, other, f"{at}/{keyword}/{number}")
        elif (keyword in released) != (keyword in current) or _text(was) != _text(is_):
            kind = "retyped" if keyword == "type" else f"{keyword} changed"
            yield f"{at}: {kind}, from {_told(released, keyword)} to {_told(current, keyword)}"


def _members(released: Schema, current: Schema, at: str) -> Iterator[str]:
    """A member more is no difference: whether it may be missing is told by `required`."""
    for name, schema in released.items():
        if name in current:
            yield from _differences(schema, current[name], f"{at}/{name}")
        else:
            yield f"{at}/{name}: removed; older consumers read it"


def _required(released: Schema, current: Schema, at: str) -> Iterator[str]:
    was, is_ = set(released.get("required", ())), set(current.get("required", ()))
    for name in sorted(is_ - was):
        yield f"{at}/{name}: required now; events in the log lack it"
    for name in sorted(was - is_):
        if name in current.get("properties", {}) or name not in released.get("properties", {}):
            yield f"{at}/{name}: not required any more; older consumers rely on it"


def _enumerated(released: list[Any], current: list[Any], at: str) -> Iterator[str]:
    was, is_ = {_text(value) for value in released}, {_text(value) for value in current}
    if gone := sorted(was - is_):
        yield f"{at}: enum narrowed by {', '.join(gone)}; events in the log have it"
    if new := sorted(is_ - was):
        yield f"{at}: enum widened by {', '.join(new)}; older consumers do not know it"


def _told(schema: Schema, keyword: str) -> str:
    return _text(schema[keyword]) if keyword in schema else "nothing"


def _text(value: Any) -> str:
    """JSON, so that 1 and true differ, and the order of members does not."""
    return json.dumps(value, sort_keys=True)
