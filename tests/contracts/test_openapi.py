"""The OpenAPI documents: valid, complete, and what is committed. Real responses are held against them by the tests of
each API (tests/integration/orders, …/catalog), each and every one."""

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types
from openapi_spec_validator import validate
from pydantic import BaseModel

from services.catalog import routes as catalog
from services.cli import openapi
from services.cli.openapi import Api
from services.common import http
from services.common.errors import DomainError
from services.common.http import Route
from services.common.http_request import validated
from services.common.openapi import Described, Operation, document
from services.customers import routes as customers
from services.orders import routes as orders
from services.orders import schemas
from tests.contracts.description import Description, Json

# The contract's table: every code has one status.
STATUS = {
    code: status
    for status, codes in {
        400: "key_missing malformed_json bad_cursor",
        401: "unauthenticated",
        403: "scope_missing",
        404: "not_found",
        409: "out_of_stock product_unknown product_inactive price_changed currency_mismatch transition_not_allowed"
        " version_not_reached below_reserved request_in_progress profile_missing too_many_addresses address_retired",
        412: "version_mismatch",
        413: "body_too_large",
        415: "media_type",
        422: "invalid key_reused amount_too_large total_negative",
        428: "if_match_missing",
        429: "rate_limited",
        503: "unavailable",
    }.items()
    for code in codes.split()
}
KEYED = "400 key_missing malformed_json|413 body_too_large|415 media_type|503 unavailable"
COMMANDED = f"{KEYED}|401 unauthenticated|403 scope_missing|404 not_found|409 request_in_progress"
COMMANDED += " transition_not_allowed|412 version_mismatch|428 if_match_missing"
READ = "401 unauthenticated|403 scope_missing|422 invalid|503 unavailable"
OWN = "401 unauthenticated|403 scope_missing|503 unavailable"
BODY = "400 malformed_json|413 body_too_large|415 media_type"
REFUSED = {
    "place_order": f"{KEYED}|401 unauthenticated|403 scope_missing|409 currency_mismatch out_of_stock price_changed"
    " product_inactive product_unknown request_in_progress|422 amount_too_large invalid key_reused total_negative",
    "list_orders": f"{READ}|400 bad_cursor",
    "get_sales": READ,
    "list_summaries": f"{READ}|400 bad_cursor",
    "get_order": f"{READ}|404 not_found|409 version_not_reached",
    "get_events": f"{READ}|404 not_found",
    "cancel_order": f"{COMMANDED}|422 invalid key_reused",
    "ship_order": f"{COMMANDED}|422 invalid key_reused",
    "deliver_order": f"{COMMANDED}|422 invalid key_reused",
    "return_order": f"{COMMANDED}|422 invalid key_reused",
    "get_inventory": "401 unauthenticated|404 not_found|503 unavailable",
    "adjust_stock": f"{KEYED}|401 unauthenticated|403 scope_missing|404 not_found"
    "|409 below_reserved request_in_progress|422 amount_too_large invalid key_reused",
    "put_product": "400 malformed_json|413 body_too_large|415 media_type|503 unavailable|401 unauthenticated"
    "|403 scope_missing|404 not_found|412 version_mismatch|422 invalid|428 if_match_missing",
    "get_product": "404 not_found|503 unavailable",
    "list_products": "400 bad_cursor|422 invalid|503 unavailable",
    "get_profile": OWN,
    "change_profile": f"{OWN}|{BODY}|412 version_mismatch|422 invalid|428 if_match_missing",
    "erase_customer": OWN,
    "export_customer": OWN,
    "list_addresses": OWN,
    "add_address": f"{OWN}|400 key_missing malformed_json|413 body_too_large|415 media_type"
    "|409 profile_missing too_many_addresses request_in_progress|422 invalid key_reused",
    "get_address": f"{OWN}|404 not_found",
    "replace_address": f"{OWN}|{BODY}|404 not_found|422 invalid"
    "|409 address_retired too_many_addresses request_in_progress",
    "retire_address": f"{OWN}|404 not_found|409 request_in_progress",
    "put_products": "401 unauthenticated|403 scope_missing|415 media_type|503 unavailable",
    "search_products": "422 invalid|503 unavailable",
    "get_health": "",
    "get_readiness": "503 unavailable",
}


# What the endpoints read of the headers; the others read none.
READ_HEADERS = {
    "place_order": {"Idempotency-Key"},
    "adjust_stock": {"Idempotency-Key"},
    **{f"{command}_order": {"Idempotency-Key", "If-Match"} for command in ("cancel", "ship", "deliver", "return")},
    "get_order": {"If-None-Match"},
    **{operation: {"If-None-Match"} for operation in ("get_product", "list_products", "search_products")},
    "put_product": {"If-Match", "If-None-Match"},
    "get_profile": {"If-None-Match"},
    "change_profile": {"If-Match"},
    "add_address": {"Idempotency-Key"},
}


MAKING = {"place_order", "put_product", "add_address", "replace_address"}
VERSIONED = {"place_order", "get_order", "put_product", "get_product", "get_profile", "change_profile"}


@dataclass(frozen=True)
class Served:
    """An API: what it declares, and the document that it serves."""

    api: Api
    routes: Sequence[Route]
    scopes: Mapping[str, str]
    description: Description


APIS = {
    "orders": Served(openapi.ORDERS, orders.ROUTES, orders.SCOPES, Description(openapi.ORDERS)),
    "catalog": Served(openapi.CATALOG, catalog.ROUTES, catalog.SCOPES, Description(openapi.CATALOG)),
    "customers": Served(openapi.CUSTOMERS, customers.ROUTES, customers.SCOPES, Description(openapi.CUSTOMERS)),
}


@pytest.fixture(params=list(APIS))
def served(request: pytest.FixtureRequest) -> Served:
    """Each API in turn."""
    return APIS[request.param]


@pytest.fixture
def description() -> Description:
    """The document of orders-api."""
    return APIS["orders"].description


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """(method, path, operation) of all."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def problem_codes(description: Description, operation: Json) -> dict[str, list[str]]:
    """Of every refusal of an operation, status to codes."""
    found = {}
    for status, response in operation["responses"].items():
        content = description.resolved(response).get("content", {}).get("application/problem+json")
        if content:
            _, narrowed = content["schema"]["allOf"]
            assert narrowed["properties"]["status"]["enum"] == [int(status)]
            found[status] = narrowed["properties"]["code"]["enum"]
    return found


def test_the_document_is_valid_openapi(served: Served) -> None:
    assert served.description.document["openapi"] == "3.1.0"
    validate(copy.deepcopy(served.description.document))


def test_the_committed_file_is_what_the_application_says(served: Served) -> None:
    assert json.loads(served.api.file.read_bytes()) == served.description.document, (
        "run `python -m services.cli.openapi`"
    )
    assert served.api.file.read_bytes() == served.api.rendered()


def test_every_route_is_described_under_an_id_and_a_tag_of_its_own(served: Served) -> None:
    found = {(method, path): operation for method, path, operation in operations(served.description.document)}
    assert found.keys() == {(route.method, route.path) for route in served.routes}
    assert max(Counter(operation["operationId"] for operation in found.values()).values()) == 1
    for route in served.routes:
        operation = found[route.method, route.path]
        assert (operation["operationId"], operation["tags"]) == (route.endpoint.__name__, [route.tag])


def test_every_operation_names_exactly_the_codes_of_the_contract(served: Served) -> None:
    for _, _, operation in operations(served.description.document):
        name = operation["operationId"]
        groups = [group.split() for group in REFUSED[name].split("|") if group]
        assert {status: sorted(codes) for status, codes in problem_codes(served.description, operation).items()} == {
            status: sorted(codes) for status, *codes in groups
        }, name
        for status, codes in problem_codes(served.description, operation).items():
            assert {STATUS[code] for code in codes} == {int(status)}, name


def test_security_says_what_the_policy_asks(served: Served) -> None:
    found = {
        (method, path): operation["security"] for method, path, operation in operations(served.description.document)
    }
    for route in served.routes:
        expected: list[Any] = []
        if isinstance(route.policy, http.AnyOf):
            expected = [{"oauth2": [scope]} for scope in route.policy.scopes] or [{"oauth2": []}]
        assert found[route.method, route.path] == expected
    flow = served.description.document["components"]["securitySchemes"]["oauth2"]["flows"]["clientCredentials"]
    assert flow["scopes"] == served.scopes
    assert all(flow["scopes"].values())


def test_parameters_bodies_and_headers_are_those_the_endpoints_read(served: Served) -> None:
    for method, path, operation in operations(served.description.document):
        name = operation["operationId"]
        parameters = {(p["in"], p["name"]): p for p in operation.get("parameters", [])}
        assert {n for where, n in parameters if where == "path"} == set(re.findall(r"{(\w+)}", path))
        (route,) = [r for r in served.routes if (r.method, r.path) == (method, path)]
        assert route.operation is not None
        model = route.operation.query
        fields = model.model_fields if model else {}
        assert {n for where, n in parameters if where == "query"} == {field.alias or n for n, field in fields.items()}
        assert {n for where, n in parameters if where == "header"} == READ_HEADERS.get(name, set())
        assert ("requestBody" in operation) == (method in ("POST", "PUT", "PATCH"))
        for status, response in operation["responses"].items():
            headers = served.description.resolved(response)["headers"]
            assert {"Server-Timing", "X-Request-Id"} <= headers.keys()
            replays = "Idempotency-Key" in READ_HEADERS.get(name, ()) and status in ("200", "201")
            assert ("Idempotency-Replayed" in headers) == replays
            assert ("Location" in headers) == (name in MAKING and status == "201")
            if name in VERSIONED:
                assert ("ETag" in headers) == (status < "400")
            assert ("Retry-After" in headers) == (status in ("409", "503"))


def test_every_example_is_valid_by_its_schema(served: Served) -> None:
    checked = 0
    for schema, example in examples(served.description.document):
        served.description.validate(schema, example, json.dumps(example)[:80])
        checked += 1
    assert checked > 20


def examples(node: Any) -> Iterator[tuple[Json, Any]]:
    """(schema, example) wherever there is one: in schemas, media types and parameters."""
    if isinstance(node, list):
        for child in node:
            yield from examples(child)
    if not isinstance(node, dict):
        return
    if "schema" in node:
        yield from ((node["schema"], each["value"]) for each in node.get("examples", {}).values())
        if "example" in node:
            yield node["schema"], node["example"]
    elif isinstance(node.get("examples"), list):
        yield from ((node, each) for each in node["examples"])
    for key, child in node.items():
        if key not in ("example", "examples"):
            yield from examples(child)


def test_every_body_has_an_example_that_the_endpoint_takes(served: Served) -> None:
    for route in served.routes:
        if route.operation is None or route.operation.body is None:
            continue
        schema = served.description.document["components"]["schemas"][route.operation.body.__name__]
        for example in schema["examples"]:
            validated(route.operation.body, example)


def test_what_the_schema_of_a_body_refuses_the_endpoint_refuses_too(description: Description) -> None:
    line = {"product_id": "01JD5Q0000E2WXGF4K4Z7D3M5T", "quantity": 1}
    good = {"currency": "USD", "items": [line]}
    bad: list[Json] = [
        {},
        good | {"more": 1},
        good | {"items": []},
        good | {"items": [line] * 2001},
        good | {"currency": "usd"},
        good | {"payment_method": "card"},
        good | {"user_id": "me"},
        *({**good, "items": [line | wrong]} for wrong in ({"quantity": 0}, {"quantity": "1"}, {"product_id": "x"})),
    ]
    schemas_ = description.document["components"]
    validator = Draft202012Validator({"$ref": "#/components/schemas/PlaceOrderBody", "components": schemas_})
    assert validator.is_valid(good)
    for body in bad:
        assert not validator.is_valid(body), body
        with pytest.raises(DomainError):
            validated(schemas.PlaceOrderBody, body)


def test_what_the_schema_of_an_adjustment_refuses_the_endpoint_refuses_and_nothing_else(
    description: Description,
) -> None:
    schemas_ = description.document["components"]
    validator = Draft202012Validator({"$ref": "#/components/schemas/AdjustStockBody", "components": schemas_})
    for body, good in (
        ({"delta": 1, "reason": "r"}, True),
        ({"delta": -(10**12), "reason": "r" * 200}, True),
        ({"delta": 0, "reason": "r"}, False),
        ({"delta": 10**12 + 1, "reason": "r"}, False),
        ({"delta": "1", "reason": "r"}, False),
        ({"delta": 1, "reason": ""}, False),
        ({"delta": 1}, False),
        ({"delta": 1, "reason": "r", "more": 1}, False),
    ):
        assert validator.is_valid(body) == good, body
        if good:
            validated(schemas.AdjustStockBody, body)
        else:
            with pytest.raises(DomainError):
                validated(schemas.AdjustStockBody, body)


def test_a_scope_nobody_described_is_refused() -> None:
    class Empty(BaseModel):
        pass

    described = Described("GET", "/x", "x", "X", "x", ("x:read",), Operation(Empty))
    with pytest.raises(ValueError, match="x:read"):
        document(title="", description="", version="1", operations=[described], scopes={}, token_url="")
