from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings

Make = Callable[..., StackSettings]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Settings of a stack in a directory and on ports of its own; `only` names the servers it shall start itself."""

    def made(home: str = "home", only: str = "postgres valkey kafka", **values: Any) -> StackSettings:
        elsewhere = {
            "valkey": {"valkey_url": "redis://127.0.0.1:1/0"},
            "kafka": {"kafka_url": "127.0.0.1:1"},
        }
        for name in set(elsewhere) - set(only.split()):
            values = elsewhere[name] | values
        return StackSettings(home=tmp_path / home, **({"port_base": free_port_base()} | values))

    return made
