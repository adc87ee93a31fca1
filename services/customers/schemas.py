"""What comes in over HTTP: bodies."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, WithJsonSchema

from services.common.schemas import Body, ShortText, example, no_control
from services.customers.countries import CODES

LINES_MAX: Final = 4  # of an address, beside its city
USER_ID: Final = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"
PERSON: Final[dict[str, JsonValue]] = {"name": "Ada Lovelace", "email": "ada@example.com", "phone": "+442071838750"}
DESTINATION: Final[dict[str, JsonValue]] = {
    "name": "Ada Lovelace",
    "lines": ["12 St James's Square"],
    "city": "London",
    "region": None,
    "postal_code": "SW1Y 4JH",
    "country": "GB",
    "phone": "+442071838750",
}


def _country(code: str) -> str:
    if code not in CODES:
        raise ValueError("not an ISO 3166-1 alpha-2 country code")
    return code


Email = Annotated[
    str,
    # Whether somebody reads it only a message can tell; 254 is what fits a mail's envelope (RFC 5321, 4.5.3.1.3).
    StringConstraints(min_length=3, max_length=254, pattern=r"^[^@\s]+@[^@\s]+$"),
    AfterValidator(no_control),
]
Phone = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{1,14}$"), Field(description="ITU-T E.164")]
UserId = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
PostalCode = Annotated[str, StringConstraints(min_length=1, max_length=20), AfterValidator(no_control)]
Country = Annotated[
    str,
    StringConstraints(min_length=2, max_length=2),
    AfterValidator(_country),
    WithJsonSchema(
        {"type": "string", "pattern": "^[A-Z]{2}$", "description": "ISO 3166-1 alpha-2", "examples": ["GB"]}
    ),
]


class ProfilePatch(Body):
    """A JSON Merge Patch (RFC 7396) of a profile: null removes a member, what is left out stays."""

    model_config = example(**PERSON)

    name: ShortText | None = None
    email: Email | None = None
    phone: Phone | None = None


class AddressBody(Body):
    """Where something can be sent."""

    model_config = example(**DESTINATION)

    name: Annotated[ShortText, Field(description="who receives it")]
    lines: Annotated[list[ShortText], Field(min_length=1, max_length=LINES_MAX, description="street, house, floor")]
    city: ShortText
    region: Annotated[ShortText | None, Field(description="state, province, prefecture; where it is needed")] = None
    postal_code: Annotated[PostalCode | None, Field(description="where there are any")] = None
    country: Country
    phone: Phone | None = None
