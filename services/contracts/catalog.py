"""Product events. Each carries the whole product, so any newer version says all that older ones did."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any


class ProductEventType(StrEnum):
    """Types a consumer may meet. Consumers ignore what they do not know."""

    CREATED = "product.created"
    CHANGED = "product.changed"


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the catalogue. `price` is in minor units of `currency`; `updated_at` is RFC 3339 text in UTC."""

    product_id: str
    name: str
    description: str
    price: int
    currency: str
    active: bool
    version: int
    updated_at: str


@dataclass(frozen=True, slots=True)
class ProductEvent:
    """One change of one product; versions run 1..n. `data` is `{"product": the product after it}`."""

    event_id: str
    product_id: str
    version: int
    type: str
    occurred_at: str
    actor: str
    data: Mapping[str, Any]


_MEMBERS = tuple(f.name for f in fields(Product))


def product_of(event: Mapping[str, Any]) -> Product:
    """The product that a parsed event carries; unknown members are ignored. KeyError when one is missing."""
    product = event["data"]["product"]
    return Product(**{name: product[name] for name in _MEMBERS})
