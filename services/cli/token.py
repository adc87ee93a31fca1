"""`orders token`: an access token of the embedded issuer."""

import sys
import uuid
from typing import Annotated

import typer

from services.common.settings import ProcessSettings
from services.embedded import keys
from services.embedded.addresses import Addresses
from services.embedded.settings import StackSettings


def token(
    sub: Annotated[str, typer.Option(help="Whose token: a UUID; a new one when absent.")] = "",
    scope: Annotated[str, typer.Option(help="Scopes, separated by spaces.")] = "orders:read orders:write",
    hours: Annotated[float, typer.Option(min=0.001, max=24 * 30, help="How long it is valid.")] = 1.0,
) -> None:
    """Print an access token that the stack in ORDERS_HOME accepts."""
    sys.stdout.write(minted(StackSettings(), sub=sub or str(uuid.uuid4()), scope=scope, hours=hours) + "\n")


def minted(settings: StackSettings, *, sub: str, scope: str, hours: float) -> str:
    """The token, signed with the key in the stack's home."""
    return keys.mint(
        settings.home,
        issuer=Addresses.of(settings).issuer,
        audience=ProcessSettings().audience,
        sub=sub,
        scope=scope,
        lifetime_seconds=round(hours * 3600),
    )
