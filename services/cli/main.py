"""The `orders` command: one function a subcommand, each in a module of its name."""

from importlib import import_module
from types import MappingProxyType
from typing import Any, Final

import typer
from typer.core import TyperGroup

_COMMANDS: Final = (
    *("up", "demo", "migrate", "seed", "verify", "rebuild", "republish", "partitions", "outbox", "cache", "payments"),
    *("token", "tail", "dead-letters", "watch", "bench"),
)
_SETTINGS: Final = MappingProxyType(
    {"bench": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}}
)


class _Commands(TyperGroup):
    """Imports a command when it is called: all of them together take a second, and memory in each process of a crew."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 # typer's signature
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 # typer's, whose click is private
        if cmd_name not in _COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        one = typer.Typer(add_completion=False)
        settings: dict[Any, Any] | None = _SETTINGS.get(cmd_name)
        one.command(cmd_name, context_settings=settings)(getattr(import_module(f"services.cli.{name}"), name))
        return typer.main.get_command(one)


app = typer.Typer(
    name="orders",
    cls=_Commands,
    help="Run, look after and look into the order backend.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _orders() -> None:
    """Make it a group, although no command is known before it is called."""
