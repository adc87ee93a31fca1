"""What a consumer reads from a message before its body: key, version and type, or it is poison."""

import pytest

from services.common.handle import PoisonError
from services.common.inbox import VERSION_MAX, Arrival, arrival
from services.common.stream import Received

GOOD = {"ce_type": b"product.changed", "ce_sequence": b"%020d" % 7}


def message(key: bytes | None = b"one", **headers: bytes | None) -> Received:
    changed = {**GOOD, **headers}
    return Received(0, 0, key, b"{}", {name: value for name, value in changed.items() if value is not None}, 0)


def test_key_version_and_type_come_from_key_and_headers() -> None:
    assert arrival(message()) == Arrival("one", 7, "product.changed")
    assert arrival(message(ce_sequence=b"%020d" % VERSION_MAX)).version == VERSION_MAX
    assert arrival(message(b"k" * 200, other=b"\xff")).key == "k" * 200


@pytest.mark.parametrize("sequence", [None, b"", b"7", b"-" + b"7" * 19, b"7" * 21, b"0" * 20, b"x" * 20, b"9" * 20])
def test_without_a_version_of_20_digits_it_is_poison(sequence: bytes | None) -> None:
    with pytest.raises(PoisonError, match="ce_sequence"):
        arrival(message(ce_sequence=sequence))


@pytest.mark.parametrize("digits", ["\u0667" * 20, "\u00b2" * 20])
def test_digits_of_other_scripts_are_no_version(digits: str) -> None:
    with pytest.raises(PoisonError, match="ce_sequence"):
        arrival(message(ce_sequence=digits.encode()))


@pytest.mark.parametrize("key", [None, b"", b"k" * 201, b"\xff", b"a\x00b"])
def test_without_a_key_that_can_be_stored_it_is_poison(key: bytes | None) -> None:
    with pytest.raises(PoisonError):
        arrival(message(key))


@pytest.mark.parametrize("type_", [None, b"", b"\xff"])
def test_without_a_type_it_is_poison(type_: bytes | None) -> None:
    with pytest.raises(PoisonError):
        arrival(message(ce_type=type_))
