"""OpenAPI 3.1 from what routes say of themselves and from pydantic models; no request is ever run through it.

A route declares its models, headers and own refusals. What follows from those (401 of a policy, 415 of a body, 428 of
If-Match, …) is added here, so that a declaration cannot forget it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, models_json_schema

Refusals = dict[str, tuple[int, str]]  # code -> (HTTP status, what a person is told)

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"  # RFC 7396
PROBLEM: Final = "application/problem+json"
PROBLEM_TYPES: Final = "urn:problem:"  # RFC 9457, section 3.1.1: an identifier that needs no resolving
ULID_EXAMPLE: Final = "01JD5Q0000E2WXGF4K4Z7D3M5T"
ULID: Final = {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$", "examples": [ULID_EXAMPLE]}

UNAUTHENTICATED: Final[Refusals] = {"unauthenticated": (401, "A bearer token is required, and it has to be valid.")}
SCOPE_MISSING: Final[Refusals] = {"scope_missing": (403, "The token does not have the scope this needs.")}
NOT_FOUND: Final[Refusals] = {"not_found": (404, "There is no such resource, or it is not yours.")}
INVALID: Final[Refusals] = {"invalid": (422, "The request is not valid; `errors` says where and why.")}
UNAVAILABLE: Final[Refusals] = {"unavailable": (503, "A part this cannot work without is away; try again.")}
BODY: Final[Refusals] = {
    "body_too_large": (413, "The body has more bytes than are taken."),
    "media_type": (415, f"The body is not of a media type that is taken, such as {JSON}."),
    "malformed_json": (400, "The body is not JSON."),
    **INVALID,
}


@dataclass(frozen=True, slots=True)
class Header:
    """A request header, and what is refused because of it."""

    name: str
    description: str
    example: str
    required: bool = False
    refusals: Refusals = field(default_factory=dict)


IDEMPOTENCY_KEY: Final = Header(
    "Idempotency-Key",
    "1 to 255 visible ASCII characters, quoted or bare. The same request with the same key is answered as it was the "
    "first time; a refusal is not remembered.",
    "8e03978e-40d5-43e8-bc93-6894a57f9324",
    required=True,
    refusals={
        "key_missing": (400, "Send Idempotency-Key with 1 to 255 visible ASCII characters."),
        "key_reused": (422, "This Idempotency-Key was used for another request."),
        "request_in_progress": (409, "A request with this Idempotency-Key is still under way."),
    },
)
IF_MATCH: Final = Header(
    "If-Match",
    'The ETag of the version that was seen, for example `"1"`.',
    '"1"',
    required=True,
    refusals={
        "if_match_missing": (428, "Send If-Match with the version you have seen."),
        "version_mismatch": (412, "It has changed since you saw it."),
    },
)
IF_NONE_MATCH: Final = Header("If-None-Match", "ETags of which one makes the answer 304 without a body.", '"1"')


class _Told(NamedTuple):
    description: str
    schema: Mapping[str, object]
    always: bool = False


_TEXT: Final = {"type": "string"}
_HEADERS: Final[Mapping[str, _Told]] = {
    "ETag": _Told(
        "The version of what is answered, a number; of a page, a digest of it.",
        {"type": "string", "pattern": '^"([1-9][0-9]*|[0-9a-f]{32})"$'},
        always=True,
    ),
    "X-Cache": _Told(
        "Whether the cache had it (`hit`), or the database answered, past the cache when that does not (`bypass`).",
        {"enum": ["hit", "miss", "bypass"]},
        always=True,
    ),
    "Age": _Told(
        "With a `hit`: seconds since it was read from the database.", {"type": "string", "pattern": "^[0-9]+$"}
    ),
    "Location": _Told("Path of what was made.", {"type": "string", "format": "uri-reference"}, always=True),
    "Idempotency-Replayed": _Told("There when the answer to a known key is given again.", {"const": "true"}),
    "Retry-After": _Told("Seconds to wait before the next try.", {"type": "string", "pattern": "^[0-9]+$"}),
    "WWW-Authenticate": _Told("What a token has to be or have (RFC 6750).", _TEXT),
    "Server-Timing": _Told(
        "Milliseconds in statements and waiting for a connection.",
        {"type": "string", "pattern": r"^db;dur=\d+\.\d{3}, pool;dur=\d+\.\d{3}$"},
        always=True,
    ),
    "X-Request-Id": _Told("The request's own, or one made for it.", _TEXT, always=True),
    "Cache-Control": _Told("Who may keep the answer.", _TEXT, always=True),
}
_EVERYWHERE: Final = ("Server-Timing", "X-Request-Id", "Cache-Control")
_OF_STATUS: Final[Mapping[int, tuple[str, ...]]] = {
    304: ("ETag",),
    401: ("WWW-Authenticate",),
    403: ("WWW-Authenticate",),
    409: ("Retry-After",),
    503: ("Retry-After",),
}


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operation takes, answers with `status`, and refuses for reasons of its own.

    No `answer`: nothing is said beyond the status.
    `may_create`: it also answers 201, with the Location of what it has made (RFC 9110, section 9.3.4).
    """

    answer: type[BaseModel] | None
    status: int = 200
    may_create: bool = False
    body: type[BaseModel] | None = None
    body_required: bool = True
    body_types: tuple[str, ...] = (JSON,)
    query: type[BaseModel] | None = None
    headers: tuple[Header, ...] = ()
    answer_headers: tuple[str, ...] = ()
    refusals: Refusals = field(default_factory=dict)
    description: str = ""
    media_type: str = JSON  # of body and answer; of any other, `body` and `answer` are what a line of it is


@dataclass(frozen=True, slots=True)
class Described:
    """An operation in its place. `scopes`: one of them is needed; none: any token will do; None: not even that."""

    method: str
    path: str
    operation_id: str
    summary: str
    tag: str
    scopes: tuple[str, ...] | None
    operation: Operation

    def refusals(self) -> Refusals:
        """Every code the operation can be refused with."""
        operation = self.operation
        found: Refusals = {}
        if self.scopes is not None:
            found |= {**UNAUTHENTICATED, **UNAVAILABLE}
        if self.scopes:
            found |= SCOPE_MISSING
        if operation.body is not None and operation.media_type == JSON:
            found |= BODY
        if operation.query is not None:
            found |= INVALID
        if "{" in self.path:
            found |= NOT_FOUND
        for header in operation.headers:
            found |= header.refusals
        return found | operation.refusals


def document(
    *,
    title: str,
    description: str,
    version: str,
    operations: Sequence[Described],
    scopes: Mapping[str, str],
    token_url: str,
) -> dict[str, Any]:
    """The whole document. ValueError when a scope is used that `scopes` does not describe."""
    unknown = {scope for each in operations for scope in each.scopes or ()} - scopes.keys()
    if unknown:
        raise ValueError(f"scopes without a description: {sorted(unknown)}")
    models = _models([each.operation for each in operations])
    queries = {each.operation.query.__name__ for each in operations if each.operation.query is not None}
    paths: dict[str, Any] = {}
    one = next((each.path for each in operations if "{" in each.path), "/")
    instance = re.sub(r"{\w+}", ULID_EXAMPLE, one)  # what a refusal in an example is about
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, models, instance)
    return {
        "openapi": "3.1.0",
        "info": {"title": title, "description": description, "version": version},
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in models.items() if name not in queries} | {"Problem": _PROBLEM},
            "responses": _shared(operations, instance),
            "headers": {
                name: {"description": told.description, "required": told.always, "schema": told.schema}
                for name, told in _HEADERS.items()
            },
            "securitySchemes": {
                "oauth2": {
                    "type": "oauth2",
                    "description": "A JWT access token (RFC 9068) of the OpenID Connect issuer, as bearer token.",
                    "flows": {"clientCredentials": {"tokenUrl": token_url, "scopes": dict(scopes)}},
                }
            },
        },
    }


class _Untitled(GenerateJsonSchema):
    """Without the titles pydantic makes of names."""

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 # pydantic's signature
        return False


def _models(operations: Sequence[Operation]) -> dict[str, dict[str, Any]]:
    """JSON Schemas by name: of bodies and queries as they are validated, of answers as they are sent."""
    taken = dict.fromkeys(model for op in operations for model in (op.body, op.query) if model is not None)
    given = dict.fromkeys(op.answer for op in operations if op.answer is not None)
    _, schemas = models_json_schema(
        [(model, "validation") for model in taken] + [(model, "serialization") for model in given],
        ref_template="#/components/schemas/{model}",
        schema_generator=_Untitled,
    )
    found: dict[str, dict[str, Any]] = schemas["$defs"]
    for schema in found.values():
        schema.pop("title", None)
    return found


def _operation(each: Described, models: Mapping[str, Any], instance: str) -> dict[str, Any]:
    operation = each.operation
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": ULID} for name in re.findall(r"{(\w+)}", each.path)
    ]
    if operation.query is not None:
        parameters += [_query(name, schema) for name, schema in models[operation.query.__name__]["properties"].items()]
    parameters += [
        {
            "name": header.name,
            "in": "header",
            "required": header.required,
            "description": header.description,
            "schema": _TEXT,
            "example": header.example,
        }
        for header in operation.headers
    ]
    made: dict[str, Any] = {
        "operationId": each.operation_id,
        "summary": each.summary,
        "tags": [each.tag],
        "security": [] if each.scopes is None else [{"oauth2": [s]} for s in each.scopes] or [{"oauth2": []}],
    }
    if operation.description:
        made["description"] = operation.description
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        content = {media_type: {"schema": _ref(operation.body)} for media_type in operation.body_types}
        made["requestBody"] = {"required": operation.body_required, "content": content}
    return made | {"responses": _responses(each, instance)}


def _responses(each: Described, instance: str) -> dict[str, Any]:
    operation = each.operation
    of_status: dict[int, dict[str, str]] = {}
    for code, (status, told) in each.refusals().items():
        of_status.setdefault(status, {})[code] = told
    replayed = ("Idempotency-Replayed",) if IDEMPOTENCY_KEY in operation.headers else ()
    answer_headers = (*operation.answer_headers, *replayed)
    answers: dict[int, dict[str, Any]] = {operation.status: _answer(operation, *answer_headers)}
    if operation.may_create:
        answers[201] = _answer(operation, *answer_headers, "Location")
    if IF_NONE_MATCH in operation.headers:
        answers[304] = {
            "description": "What If-None-Match names is what there is.",
            "headers": _headers(*operation.answer_headers),
        }
    for status, told_of in of_status.items():
        answers[status] = _refusal(status, told_of, instance) if len(told_of) > 1 else _shared_ref(*told_of)
    return {str(status): answers[status] for status in sorted(answers)}


def _answer(operation: Operation, *headers: str) -> dict[str, Any]:
    if operation.answer is None:
        return {"description": "It is done.", "headers": _headers(*headers)}
    return {
        "description": (operation.answer.__doc__ or "").partition("\n")[0],
        "headers": _headers(*headers),
        "content": {operation.media_type: {"schema": _ref(operation.answer)}},
    }


def _shared(operations: Sequence[Described], instance: str) -> dict[str, Any]:
    """Of every code that stands alone for its status somewhere, the response."""
    alone: Refusals = {}
    for each in operations:
        refusals = each.refusals()
        statuses = [status for status, _ in refusals.values()]
        alone |= {code: said for code, said in refusals.items() if statuses.count(said[0]) == 1}
    return {_camel(code): _refusal(status, {code: told}, instance) for code, (status, told) in sorted(alone.items())}


def _shared_ref(code: str) -> dict[str, Any]:
    return {"$ref": f"#/components/responses/{_camel(code)}"}


def _camel(code: str) -> str:
    return code.title().replace("_", "")


def _refusal(status: int, told_of: Mapping[str, str], instance: str) -> dict[str, Any]:
    return {
        "description": ", ".join(f"`{code}`" for code in told_of),
        "headers": _headers(*_OF_STATUS.get(status, ())),
        "content": {PROBLEM: _problem(status, told_of, instance)},
    }


def _problem(status: int, told_of: Mapping[str, str], instance: str) -> dict[str, Any]:
    return {
        "schema": {
            "allOf": [
                {"$ref": "#/components/schemas/Problem"},
                {
                    "type": "object",
                    "properties": {
                        "status": {"type": "integer", "enum": [status]},
                        "code": {"type": "string", "enum": list(told_of)},
                    },
                },
            ]
        },
        "examples": {code: {"value": problem_content(code, status, told, instance)} for code, told in told_of.items()},
    }


def problem_content(code: str, status: int, detail: str, instance: str) -> dict[str, Any]:
    """The members every problem document has (RFC 9457)."""
    return {
        "type": PROBLEM_TYPES + code,
        "title": code.replace("_", " ").capitalize(),
        "status": status,
        "code": code,
        "detail": detail,
        "instance": instance,
    }


_PROBLEM: Final = {
    "type": "object",
    "description": "A refusal (RFC 9457). `code` is stable and what programs decide by; some have further members.",
    "required": ["type", "title", "status", "code", "detail", "instance"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "code": _TEXT,
        "detail": _TEXT,
        "instance": {"type": "string", "format": "uri-reference"},
        "errors": {
            "description": "With `invalid`: the place (JSON Pointer) and the reason of each fault, at most 20. Some"
            " have further members.",
            "type": "array",
            "items": {"type": "object", "required": ["at", "reason"], "properties": {"at": _TEXT, "reason": _TEXT}},
        },
        "required": {"description": "With `scope_missing`: one is needed.", "type": "array", "items": _TEXT},
        "current_version": {
            "description": "With 412 and `version_not_reached`; null when there is no such thing yet.",
            "type": ["integer", "null"],
        },
    },
}


def _query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter; that it may be None means that it may be left out, as nothing in a query string is null."""
    kept = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    for kind in kept.pop("anyOf", []):
        kept |= kind if kind != {"type": "null"} else {}
    description = kept.pop("description", None)
    return {"name": name, "in": "query", "required": False, "schema": kept} | (
        {"description": description} if description else {}
    )


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in (*names, *_EVERYWHERE)}


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
