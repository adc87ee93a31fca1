from pathlib import Path

import pytest

from loadtests import machine


@pytest.mark.parametrize(
    ("groups", "file", "limit"),
    [
        pytest.param("0::/bench/cold\n", "bench/memory.max", "4294967296", id="version 2, of the group above"),
        pytest.param(
            "4:memory:/cold\n0::/\n", "memory/cold/memory.limit_in_bytes", "4294967296", id="version 1, beside 2"
        ),
    ],
)
def test_memory_is_what_the_control_group_leaves(tmp_path: Path, groups: str, file: str, limit: str) -> None:
    (tmp_path / "cgroup").write_text(groups)
    told = tmp_path / "mounted" / file
    told.parent.mkdir(parents=True)
    told.write_text(f"{limit}\n")

    assert list(machine.memory_limits(tmp_path / "cgroup", tmp_path / "mounted")) == [int(limit)]


@pytest.mark.parametrize("groups", ["", "0::/\n", "4:cpu:/\n"])
def test_memory_without_a_limit(tmp_path: Path, groups: str) -> None:
    (tmp_path / "cgroup").write_text(groups)
    (tmp_path / "memory.max").write_text("max\n")

    assert not list(machine.memory_limits(tmp_path / "cgroup", tmp_path))
    assert not list(machine.memory_limits(tmp_path / "no-such-file"))
