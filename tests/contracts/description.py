"""The OpenAPI document, held against real responses."""

import copy
import json
import re
from functools import cache
from typing import Any

import httpx
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types

from services.cli.openapi import Api
from tests.contracts import events

Json = dict[str, Any]

# Headers that are HTTP's own business and in no description; X-Content-Type-Options and Allow are for browsers and 405.
UNDESCRIBED = {
    *("content-length", "content-type", "connection", "transfer-encoding", "x-content-type-options"),
    *("accept", "accept-post", "accept-patch", "date"),
}
CODES_WITHOUT_OPERATION = {"not_found", "method_not_allowed"}


def refused(response: httpx.Response) -> str:
    """Status and code of a refusal, status alone otherwise."""
    code = response.json()["code"] if response.status_code >= 400 else ""
    return f"{response.status_code} {code}".strip()


class Description:
    """`check` holds a response against the document; `seen` is what came by: (operation, status, code)."""

    def __init__(self, api: Api) -> None:
        self.document = api.document()
        self.components = closed(self.document["components"])
        self.seen: set[tuple[str, int, str]] = set()
        self.operations = {
            (method.upper(), re.compile(re.sub(r"{\w+}", "[^/]+", path) + r"\Z")): operation
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        }

    async def check(self, response: httpx.Response) -> None:
        """AssertionError when `response` is not as described."""
        await response.aread()
        request = response.request
        path = request.url.path
        if path == "/openapi.json":
            return
        found = [
            op for (method, route), op in self.operations.items() if method == request.method and route.match(path)
        ]
        if not found:
            self._check_problem(response, CODES_WITHOUT_OPERATION)
            return
        (operation,) = found
        where = f"{operation['operationId']} {response.status_code}"
        described = operation["responses"].get(str(response.status_code))
        assert described is not None, f"{where} is not described: {response.text}"
        described = self.resolved(described)
        self._check_headers(where, described["headers"], response.headers)
        code = ""
        if response.status_code in (204, 304):
            assert not response.content
        else:
            ((media_type, content),) = described["content"].items()
            assert response.headers["content-type"] == media_type, where
            body = response.json()
            code = body.get("code", "")
            self.validate(content["schema"], body, where)
            for event in body["data"] if where == "get_events 200" else ():
                events.check(event)
            if response.status_code >= 400:
                self._check_problem(response, {code})
        self.seen.add((operation["operationId"], response.status_code, code))

    def resolved(self, node: Json) -> Json:
        """What a $ref names, or the node itself."""
        while "$ref" in node:
            _, _, kind, name = node["$ref"].split("/")
            node = self.document["components"][kind][name]
        return node

    @cache  # noqa: B019 # lives as long as the tests
    def _validator(self, schema: str) -> Any:
        return Draft202012Validator(
            {**json.loads(schema), "components": self.components}, format_checker=Draft202012Validator.FORMAT_CHECKER
        )

    def validate(self, schema: Json, value: object, where: str) -> None:
        """AssertionError when `value` is not of `schema`, or has members it does not name."""
        errors = list(self._validator(json.dumps(schema)).iter_errors(value))
        assert not errors, f"{where}: {[f'{error.json_path}: {error.message}' for error in errors[:5]]}"

    def _check_headers(self, where: str, described: Json, headers: httpx.Headers) -> None:
        for name, reference in described.items():
            header = self.resolved(reference)
            if name in headers:
                self.validate(header["schema"], headers[name], f"{where} {name}")
            else:
                assert not header["required"], f"{where} lacks {name}"
        strangers = set(headers) - {name.lower() for name in described} - UNDESCRIBED
        assert not strangers, f"{where} has headers that are not described: {strangers}"

    def _check_problem(self, response: httpx.Response, codes: set[str]) -> None:
        assert response.headers["content-type"] == "application/problem+json"
        content = response.json()
        self.validate({"$ref": "#/components/schemas/Problem"}, content, "problem")
        assert content["code"] in codes
        assert content["status"] == response.status_code
        assert response.headers["server-timing"].startswith("db;dur=")


def closed(components: Json) -> Json:
    """The components, with answers that may have no other members: clients may get more one day, tests may not."""
    made: Json = copy.deepcopy(components)
    for name, schema in made["schemas"].items():
        if "properties" in schema and name != "Problem":
            schema["additionalProperties"] = False
    return made
