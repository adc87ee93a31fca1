"""The page that follows an order: one file, and a policy that lets it run its own script and nothing else."""

import base64
import hashlib
import re
from importlib import resources
from typing import Final

PAGE: Final = resources.files(__package__).joinpath("page.html").read_bytes()


def _hashes(element: str) -> str:
    found = re.findall(rb"<%b>(.*?)</%b>" % (element.encode(), element.encode()), PAGE, re.DOTALL)
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(one).digest()).decode()}'" for one in found)


# Content Security Policy 3. 'self' of connect-src is this gateway's WebSocket, too.
HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; script-src {_hashes('script')}; style-src {_hashes('style')};"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
