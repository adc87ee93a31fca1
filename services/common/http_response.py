"""What goes out: JSON made once, problem documents, and answers as the cache has them."""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import orjson
from fastapi import Response

from services.common import openapi
from services.common.cached import Answer
from services.common.errors import DomainError
from services.common.http_conditional import etag, none_match
from services.common.openapi import JSON, PROBLEM

_JSON_TYPE: Final = (b"content-type", JSON.encode())


class JsonResponse(Response):
    """A response whose bytes are made once, by orjson."""

    media_type = JSON

    def render(self, content: object) -> bytes:
        """JSON in UTF-8 (RFC 8259); bytes are taken as they are."""
        return content if isinstance(content, bytes) else orjson.dumps(content)

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As Starlette's, for a body that is always there and of which `headers` say neither length nor type."""
        self.raw_headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.raw_headers.append((b"content-length", b"%d" % len(self.body)))
        self.raw_headers.append((b"content-type", self.media_type.encode()))


def problem(error: DomainError, path: str) -> Response:
    """The problem document of `error` (RFC 9457); the same for the same refusal but for `instance`, made of `path`."""
    instance = quote(path, safe="/:@!$&'()*+,;=~", errors="replace")
    content = openapi.problem_content(error.code, error.status, error.detail, instance) | error.extra
    return JsonResponse(content, status_code=error.status, headers=error.headers, media_type=PROBLEM)


class CachedResponse(Response):
    """An answer as its cache has it, its ETag, and where it comes from; 304 when the client has that version.

    Put together here, as Starlette's own way from a dictionary costs a tenth of a hit.
    """

    def __init__(self, answer: Answer, if_none_match: str | None = None) -> None:
        entry = answer.entry
        self.raw_headers = [(b"etag", b'"%d"' % entry.version), (b"x-cache", answer.outcome.encode())]
        if answer.outcome == "hit":
            self.raw_headers.append((b"age", b"%d" % answer.age_seconds))
        self.background = None
        if none_match(if_none_match, entry.version):
            self.status_code, self.body = 200, entry.body
            self.raw_headers += ((b"content-length", b"%d" % len(entry.body)), _JSON_TYPE)
        else:
            self.status_code, self.body = 304, b""


def cached_headers(answer: Answer) -> dict[str, str]:
    """ETag, and where the answer comes from; how long ago it was read from the database, when it was kept since."""
    headers = {"ETag": etag(answer.entry.version), "X-Cache": answer.outcome}
    if answer.outcome == "hit":
        headers["Age"] = str(int(answer.age_seconds))
    return headers
