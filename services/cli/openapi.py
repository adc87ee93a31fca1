"""`python -m services.cli.openapi` writes docs/openapi*.json, the descriptions of the APIs as the code gives them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from services.catalog import api as catalog
from services.catalog.settings import CatalogSettings
from services.common.http import Application
from services.customers import api as customers
from services.customers.settings import CustomersSettings
from services.orders import api as orders
from services.orders.settings import OrdersSettings

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
ISSUER: Final = "http://127.0.0.1:8004"  # the one for development, whatever this machine is set to


@dataclass(frozen=True, slots=True)
class Api:
    """An API and the file that describes it. Nothing is connected to for that."""

    file: Path
    create: Callable[[], Application]

    def document(self) -> dict[str, Any]:
        """The OpenAPI document, the same on every machine."""
        return self.create().fastapi.openapi()

    def rendered(self) -> bytes:
        """The document as the file has it."""
        return orjson.dumps(self.document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


ORDERS: Final = Api(DOCS / "openapi.json", lambda: orders.create_app(OrdersSettings(issuer_url=ISSUER)))
CATALOG: Final = Api(DOCS / "openapi-catalog.json", lambda: catalog.create_app(CatalogSettings(issuer_url=ISSUER)))

CUSTOMERS: Final = Api(
    DOCS / "openapi-customers.json", lambda: customers.create_app(CustomersSettings(issuer_url=ISSUER))
)

if __name__ == "__main__":
    for api in (ORDERS, CATALOG, CUSTOMERS):
        api.file.write_bytes(api.rendered())
