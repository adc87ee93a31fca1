"""Types that members of several services' bodies and answers have, and the bounds of pages."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema

from services.common import ids, money, openapi

PAGE_MAX: Final = 100
PAGE_DEFAULT: Final = 20
VERSION_MAX: Final = 2**31 - 1
AT: Final = "2026-11-22T18:16:50.123Z"  # for examples


def _ulid(text: str) -> str:
    return ids.to_text(ids.from_text(text))


def no_control(text: str) -> str:
    """`text`. ValueError when a control character is in it; PostgreSQL's text, for one, cannot hold NUL."""
    if any(ord(character) < 0x20 for character in text):
        raise ValueError("control characters (NUL among them) are not allowed")
    return text


def _currency(code: str) -> str:
    if code not in money.DECIMALS:
        raise ValueError("not an active ISO 4217 currency code")
    return code


Ulid = Annotated[
    str, StringConstraints(min_length=26, max_length=26), AfterValidator(_ulid), WithJsonSchema(openapi.ULID)
]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(no_control)]
Price = Annotated[int, Field(ge=1, le=money.PRICE_MAX)]
Currency = Annotated[
    str,
    StringConstraints(min_length=3, max_length=3),
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217", "examples": ["USD"]}),
]
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX)]

# Of answers, which are rendered from what is in the database: described, not checked.
Time = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", json_schema_extra={"format": "date-time"})
]
UlidText = Annotated[str, WithJsonSchema(openapi.ULID)]
Version = Annotated[int, Field(ge=1, le=VERSION_MAX)]


def example(**members: JsonValue) -> ConfigDict:
    """Configuration of a model with one example for the description of the API."""
    return ConfigDict(json_schema_extra={"examples": [members]})


class Body(BaseModel):
    """A request body: exact types, no unknown members."""

    model_config = ConfigDict(extra="forbid", strict=True)


class HealthAnswer(BaseModel):
    """The process is alive."""

    status: Literal["ok"]


class ReadinessAnswer(BaseModel):
    """Requests can be served; what is not as it should be stands in `warnings`."""

    status: Literal["ok"]
    warnings: list[str]
