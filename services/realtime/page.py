"""The page that follows an order, with its script and its style, and a policy that lets it run these and nothing else.

Script and style are served under names that change with their content, so that whoever has one may keep it for ever;
the page, which says these names, is asked for again each time.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final


@dataclass(frozen=True, slots=True)
class Asset:
    """A file under a name of its own content."""

    content: bytes
    media_type: str


def hashed(name: str, content: bytes) -> str:
    """`name` with 64 bits of the content's SHA-256: another content, another name."""
    stem, _, kind = name.rpartition(".")
    return f"{stem}.{hashlib.sha256(content).hexdigest()[:16]}.{kind}"


def _read(name: str) -> bytes:
    return resources.files(__package__).joinpath(name).read_bytes()


_NAMES: Final = {name: hashed(name, _read(name)) for name in ("page.css", "page.js")}
ASSETS: Final = {
    _NAMES["page.css"]: Asset(_read("page.css"), "text/css; charset=utf-8"),
    _NAMES["page.js"]: Asset(_read("page.js"), "text/javascript; charset=utf-8"),
}


def _page() -> bytes:
    page = _read("page.html")
    for name, of_content in _NAMES.items():
        page = page.replace(b"{%b}" % name.encode(), f"assets/{of_content}".encode())
    return page


PAGE: Final = _page()
PAGE_ETAG: Final = f'"{hashlib.sha256(PAGE).hexdigest()[:16]}"'
PAGE_HEADERS: Final = {
    "Cache-Control": "no-cache",  # it may be kept, and is asked for all the same
    "ETag": PAGE_ETAG,
    # Content Security Policy 3. 'self' of connect-src is this gateway's WebSocket, too.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
ASSET_HEADERS: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
