"""What comes in over HTTP, and how what goes out is described."""

from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from services.common import openapi
from services.common.schemas import (
    AT,
    PAGE_DEFAULT,
    Body,
    Currency,
    Limit,
    Price,
    ShortText,
    Time,
    UlidText,
    Version,
    example,
    no_control,
)

DESCRIPTION_CHARACTERS_MAX: Final = 10_000  # a hundred of them are a page of a list
_OF_LINES: Final = str.maketrans("", "", "\t\n\r")


def _no_control_but_lines(text: str) -> str:
    no_control(text.translate(_OF_LINES))
    return text


LongText = Annotated[
    str, StringConstraints(max_length=DESCRIPTION_CHARACTERS_MAX), AfterValidator(_no_control_but_lines)
]


class ProductBody(Body):
    """All that can be said of a product; what is left out is empty."""

    model_config = example(name="Teapot", description="One litre.", price=1999, currency="USD", active=True)

    name: ShortText
    description: LongText = ""
    price: Annotated[Price, Field(description="minor units of the currency")]
    currency: Currency
    active: Annotated[bool, Field(description="whether it is for sale")]


class ListQuery(BaseModel):
    """Parameters of listing products."""

    model_config = ConfigDict(extra="forbid")

    limit: Limit = PAGE_DEFAULT
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before")


class ProductAnswer(BaseModel):
    """The product as it stands."""

    product_id: UlidText
    name: str
    description: str
    price: Price
    currency: Currency
    active: bool
    version: Version
    updated_at: Time

    model_config = example(
        product_id=openapi.ULID_EXAMPLE,
        name="Teapot",
        description="One litre.",
        price=1999,
        currency="USD",
        active=True,
        version=1,
        updated_at=AT,
    )


class ProductsPage(BaseModel):
    """Products in the order of their ids."""

    data: list[ProductAnswer]
    next_cursor: str | None
