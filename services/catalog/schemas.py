"""What comes in over HTTP, and how what goes out is described."""

from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    ValidationInfo,
    field_validator,
)

from services.common import money, openapi
from services.common.schemas import (
    AT,
    PAGE_DEFAULT,
    Body,
    Currency,
    Limit,
    Price,
    ShortText,
    Time,
    Ulid,
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


QueryPrice = Annotated[int, Field(ge=0, le=money.PRICE_MAX + 1)]
Count = Annotated[int, Field(ge=0)]


class ProductBody(Body):
    """All that can be said of a product; what is left out is empty."""

    model_config = example(name="Teapot", description="One litre.", price=1999, currency="USD", active=True)

    name: ShortText
    description: LongText = ""
    price: Annotated[Price, Field(description="minor units of the currency")]
    currency: Currency
    active: Annotated[bool, Field(description="whether it is for sale")]


class BulkLine(ProductBody):
    """One line: a product as it is to be, whatever it is now."""

    model_config = example(
        product_id=openapi.ULID_EXAMPLE,
        name="Teapot",
        description="One litre.",
        price=1999,
        currency="USD",
        active=True,
    )

    product_id: Ulid


class FindQuery(BaseModel):
    """Which products, and how many. Prices are half-open, [from, to)."""

    model_config = ConfigDict(extra="forbid")

    active: bool = Field(default=True, description="those for sale, or those that are not")
    currency: Currency | None = None
    price_from: QueryPrice | None = Field(default=None, description="minor units of `currency`, which has to be given")
    price_to: QueryPrice | None = Field(default=None, description="as `price_from`, and not itself in the range")
    limit: Limit = PAGE_DEFAULT

    @field_validator("price_from", "price_to")
    @classmethod
    def _of_a_currency(cls, price: int | None, others: ValidationInfo) -> int | None:
        if price is not None and others.data.get("currency", "") is None:  # not there when it is at fault itself
            raise ValueError("a price is in minor units of a currency: name it, too")
        return price


class SearchQuery(FindQuery):
    """What is looked for."""

    q: Annotated[ShortText, Field(description='words; also `"a phrase"`, `or`, and `-` before what is not wanted')]


class ListQuery(FindQuery):
    """Parameters of listing products."""

    sort: Literal["newest", "name"] = Field(default="newest", description="by id, the last made first, or by name")
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


class Fault(BaseModel):
    """Where a line is wrong (JSON Pointer), and why."""

    at: str
    reason: str


class Refusal(BaseModel):
    """A problem document (RFC 9457), as of a request of its own."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    errors: Annotated[list[Fault], Field(default_factory=list, description="with `invalid`, at most 20")]


class LineTaken(BaseModel):
    """What a line did; `version` is the product's afterwards."""

    line: Annotated[int, Field(ge=1)]
    product_id: UlidText
    result: Literal["created", "replaced", "unchanged"]
    version: Version


class LineRefused(BaseModel):
    """Why a line did nothing."""

    line: Annotated[int, Field(ge=1)]
    result: Literal["error"]
    problem: Refusal


class BulkFinished(BaseModel):
    """The last line: how many lines did what."""

    result: Literal["finished"]
    created: Count
    replaced: Count
    unchanged: Count
    error: Count


class BulkStopped(BaseModel):
    """The last line: how many lines did what before it could not go on. All others are to be sent again."""

    result: Literal["stopped"]
    created: Count
    replaced: Count
    unchanged: Count
    error: Count
    problem: Refusal


class BulkAnswer(RootModel[LineTaken | LineRefused | BulkFinished | BulkStopped]):
    """A line of the answer: a verdict on each line that is not empty, in their order, and at last the end."""


class ProductsPage(BaseModel):
    """Products, in the order that was asked for."""

    data: list[ProductAnswer]
    next_cursor: str | None
