"""The edge's configuration and table: what is committed is what the policy gives, and no route is without one."""

import re
from pathlib import Path

import pytest

from services.cli import edge, edge_policy
from services.cli.edge_policy import POLICIES, Stored


def test_every_route_has_a_policy() -> None:
    assert edge.without_policy(edge.served()) == []


def test_a_route_that_is_not_in_the_table_is_noticed() -> None:
    routes = edge.served()
    planted = {**routes, "orders": {**routes["orders"], "GET /v1/secrets": True}}
    assert edge.without_policy(planted) == ["orders: GET /v1/secrets"]


def test_every_document_of_an_api_is_read() -> None:
    documents = {file.name for file in edge.DOCS.glob("openapi*.json")}
    assert {"openapi.json", "openapi-catalog.json"} <= documents
    assert len(edge.served()) == len(documents) + 1, "and the gateway, which has none"


@pytest.mark.parametrize("file", edge.files(edge.served()), ids=lambda file: file.name)
def test_the_committed_file_is_what_the_policy_gives(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == edge.files(edge.served())[file], "run `make edge`"


def test_what_is_kept_is_what_anybody_may_read() -> None:
    for service, routes in edge.served().items():
        for route, wants_token in routes.items():
            if isinstance(POLICIES[service][route], Stored):
                assert route.startswith("GET ")
                assert not wants_token, route


def test_what_is_kept_and_changes_is_shown_for_six_minutes_at_most() -> None:
    stored = {policy for routes in POLICIES.values() for policy in routes.values() if isinstance(policy, Stored)}
    for policy in stored - {edge_policy.ASSETS}:
        seconds = re.fullmatch(r"public, max-age=(\d+), stale-while-revalidate=(\d+)", policy.cache_control)
        assert seconds is not None, policy
        assert int(seconds[1]) + int(seconds[2]) <= 360
