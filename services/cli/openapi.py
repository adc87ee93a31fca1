"""`python -m services.cli.openapi` writes docs/openapi.json, the description of orders-api as the code gives it."""

from pathlib import Path
from typing import Any, Final

import orjson

from services.orders.api import create_app
from services.orders.settings import OrdersSettings

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
ISSUER: Final = "http://127.0.0.1:8004"  # the one for development, whatever this machine is set to


def document() -> dict[str, Any]:
    """The OpenAPI document of orders-api, the same on every machine. Nothing is connected to."""
    return create_app(OrdersSettings(issuer_url=ISSUER)).fastapi.openapi()


def rendered() -> bytes:
    """The document as the file has it."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    FILE.write_bytes(rendered())
