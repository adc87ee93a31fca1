"""`python -m services.cli.edge` writes the nginx configuration of infra/edge, and the table of docs/edge.md.

Both follow from the documents of the APIs (docs/openapi*.json), the routes of the gateway, and `edge_policy`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import orjson

from services.cli.edge_policy import POLICIES, Inside, Passed, Policy, Socket, Stored
from services.cli.marked import replaced
from services.common.http_request import BODY_BYTES_MAX
from services.common.openapi import problem_content
from services.realtime.frames import PATH as STREAM
from services.realtime.routes import ROUTES as REALTIME

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
EDGE: Final = ROOT / "infra" / "edge"
TABLE: Final = DOCS / "edge.md"

# Where each service is in docker compose; the ports are those of `orders up`, too.
ORIGINS: Final[Mapping[str, str]] = {
    "orders": "orders-api:8000",
    "catalog": "catalog-api:8001",
    "customers": "customers-api:8002",
    "realtime": "realtime-gateway:8003",
}
_HEAD: Final = "# Written by `make edge`: do not edit it here.\n"
_ANSWERS: Final = (  # of the edge itself: what nginx found, and what it says
    ((404,), 404, "not_found", "There is no such resource, or it is not yours."),
    ((413,), 413, "body_too_large", f"A body has at most {BODY_BYTES_MAX} bytes."),
    ((502, 504), 503, "unavailable", "What is behind the edge does not answer."),
)

Routes = Mapping[str, Mapping[str, bool]]  # by service: "METHOD path" -> whether it wants a token


def served() -> Routes:
    """Every route there is. ValueError for a document of a service that is not known here."""
    found: dict[str, dict[str, bool]] = {}
    for file in sorted(DOCS.glob("openapi*.json")):
        service = file.stem.removeprefix("openapi").removeprefix("-") or "orders"
        found[service] = {
            f"{method.upper()} {path}": bool(operation["security"])
            for path, methods in orjson.loads(file.read_bytes())["paths"].items()
            for method, operation in methods.items()
        }
    gateway = {f"{route.method} {route.path}": bool(getattr(route.policy, "scopes", ())) for route in REALTIME}
    found["realtime"] = gateway | {f"GET {STREAM}": True}
    return {service: found[service] for service in sorted(found, key=list(ORIGINS).index)}


def without_policy(routes: Routes) -> list[str]:
    """Routes that do not stand in the table."""
    return [
        f"{service}: {route}"
        for service, of_service in routes.items()
        for route in of_service
        if route not in POLICIES[service]
    ]


def files(routes: Routes) -> dict[Path, str]:
    """What each file is to say."""
    return {
        EDGE / "upstreams.conf": _HEAD + "\n".join(_upstreams(routes)) + "\n",
        EDGE / "policies.conf": _HEAD + "\n".join(_policies(routes)) + "\n",
        EDGE / "routes.conf": _HEAD + "\n".join((*_locations(routes), *_answers())) + "\n",
        TABLE: replaced(TABLE.read_text(encoding="utf-8"), "make edge: the routes", "\n".join(_rows(routes)) + "\n"),
    }


def _upstreams(routes: Routes) -> Iterator[str]:
    yield "# An idle connection is given up before uvicorn does (5 s): a request into a closed one would be lost."
    for service in routes:
        yield f"upstream {service} {{\n    server {ORIGINS[service]};\n    keepalive 32;\n    keepalive_timeout 4s;\n}}"


def _policies(routes: Routes) -> Iterator[str]:
    yield "# What an answer has to be for it to be kept, status and Cache-Control."
    used = {p for service, of in routes.items() for route in of if isinstance(p := POLICIES[service][route], Stored)}
    for policy in sorted(used, key=lambda one: one.name):
        yield (
            f'map "$upstream_status $upstream_http_cache_control" $not_{policy.name} {{\n    default 1;\n'
            f'    "200 {policy.cache_control}" "";\n}}'
        )


def _locations(routes: Routes) -> Iterator[str]:
    for service, of_service in routes.items():
        by_path: dict[str, list[Policy]] = {}
        for route in of_service:
            by_path.setdefault(route.partition(" ")[2], []).append(POLICIES[service][route])
        for path, policies in by_path.items():
            outside = [policy for policy in policies if not isinstance(policy, Inside)]
            if outside:
                yield _location(service, path, outside)


def _location(service: str, path: str, policies: Sequence[Policy]) -> str:
    where = f"~ ^{re.sub('{[^}]*}', '[^/]+', path.replace('.', '[.]'))}$" if "{" in path else f"= {path}"
    directives = [line for policy in policies for line in _directives(policy)] + [f"proxy_pass http://{service};"]
    return f"location {where} {{\n" + "".join(f"    {line}\n" for line in directives) + "}"


def _directives(policy: Policy) -> tuple[str, ...]:
    match policy:
        case Stored(name):
            # Whoever's request began an update waits with the next one on that connection until it is done.
            return "proxy_cache edge;", f"proxy_no_cache $personal $not_{name};", "proxy_read_timeout 10s;"
        case Socket():
            return "set $upgrade $websocket;", "proxy_buffering off;"
        case Passed() | Inside():
            return ()


def _answers() -> Iterator[str]:
    for found, status, code, detail in _ANSWERS:
        content = orjson.dumps(problem_content(code, status, detail, "$instance")).decode()
        lines = ["default_type application/problem+json;", 'set $own_cache_control "private, no-store";']
        lines += ["set $retry_after 1;"] if status == 503 else []
        yield f"error_page {' '.join(map(str, found))} ={status} @{code};"
        yield (
            f"location @{code} {{\n"
            + "".join(f"    {line}\n" for line in lines)
            + f"    return {status} '{content}';\n}}"
        )


def _rows(routes: Routes) -> Iterator[str]:
    yield "| route | of | at the edge | kept |"
    yield "|---|---|---|---|"
    for service, of_service in routes.items():
        for route in of_service:
            yield f"| `{route}` | {service} | {' | '.join(_told(POLICIES[service][route]))} |"


def _told(policy: Policy) -> tuple[str, str]:
    match policy:
        case Stored(_, cache_control):
            return "kept, shown to anybody", f"`{cache_control}`"
        case Passed():
            return "passed on", "never"
        case Socket():
            return "WebSocket", "never"
        case Inside():
            return "not reachable", "never"


if __name__ == "__main__":
    routes = served()
    if missing := without_policy(routes):
        raise SystemExit("without a policy in services/cli/edge_policy.py:\n" + "\n".join(missing))
    for file, text in files(routes).items():
        file.write_text(text, encoding="utf-8")
