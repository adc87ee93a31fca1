"""infra/postgres/postgresql.conf: what containers have, and the embedded server has, too."""

import re
import subprocess
from pathlib import Path

import pytest

from services.embedded.postgres import Postgres, program
from services.embedded.settings import StackSettings

FILE = Path(__file__).parents[3] / "infra" / "postgres" / "postgresql.conf"
SETTING = re.compile(r"^(\w+) = (?:'([^']*)'|(\S+)) # .{10,}$")
OF_CONTAINERS = {"listen_addresses"}  # an embedded server is for its machine alone
WITHOUT_LZ4 = {"default_toast_compression", "wal_compression"}  # PostgreSQL of the wheel is built without it
OF_A_MACHINE = {"listen_addresses", "unix_socket_permissions", "unix_socket_directories", "port"}


def _lines() -> list[str]:
    return [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]


def _settings() -> dict[str, str]:
    found = [SETTING.match(line) for line in _lines()]
    return {each[1]: each[2] or each[3] for each in found if each}


def test_each_setting_has_its_reason_on_its_line() -> None:
    assert [line for line in _lines() if not SETTING.match(line)] == []


def test_the_embedded_server_is_told_the_same(tmp_path: Path) -> None:
    embedded = Postgres.of(StackSettings(home=tmp_path)).flags()
    expected = {name: value for name, value in _settings().items() if name not in OF_CONTAINERS | WITHOUT_LZ4}
    assert {name: value for name, value in embedded.items() if name not in OF_A_MACHINE} == expected


@pytest.mark.parametrize(("name", "value"), [("max_locks_per_transaction", "1024"), ("checkpoint_timeout", "900")])
def test_postgresql_reads_it(tmp_path: Path, name: str, value: str) -> None:
    readable = [line for line in _lines() if line.split()[0] not in WITHOUT_LZ4]
    (tmp_path / "postgresql.conf").write_text("\n".join(readable))
    (tmp_path / "postgresql.auto.conf").touch()
    command = [str(program("postgres")), "-C", name, "-D", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, value, "")
