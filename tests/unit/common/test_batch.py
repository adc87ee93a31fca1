"""A batch with poison and gaps in it, as a handler of changes sees it: no Kafka and no database are needed for that."""

from collections.abc import Mapping, Sequence

import pytest

from services.common.batch import Settled, settle
from services.common.handle import Gap, GapError, NotFilledError, PoisonError
from services.common.inbox import arrival
from services.common.stream import Message, Received


def event(key: str, version: int, value: bytes = b"good") -> Message:
    return Message(key.encode(), value, [("ce_type", b"counted"), ("ce_sequence", b"%020d" % version)])


def came(*events: Message) -> list[Received]:
    return [Received(0, 100 + n, e.key, e.value, dict(e.headers), 0) for n, e in enumerate(events)]


class Changes:
    """A consumer of changes, and the API that has `known`."""

    def __init__(self, *known: Message) -> None:
        self.known = known
        self.applied: list[tuple[str, int]] = []
        self.asked = 0

    async def handle(self, _: str, messages: Sequence[Received]) -> Mapping[str, int]:
        for message in messages:
            if message.value != b"good":
                raise PoisonError(message, "it is bad")
        last = dict(self.applied)
        new, gaps = [], []
        for message in messages:
            one = arrival(message)
            before = last.get(one.key, 0)
            if one.version > before + 1:
                gaps.append(Gap(message, one.key, before, one.version))
            if one.version > before:
                new.append((one.key, one.version))
                last[one.key] = one.version
        if gaps:
            raise GapError(gaps)
        self.applied += new
        return {"applied": len(new)}

    async def fill(self, key: str, after_version: int) -> Sequence[Message]:
        self.asked += 1
        if not self.known:
            raise NotFilledError("away")
        return [m for m in self.known if m.key == key.encode() and arrival(came(m)[0]).version > after_version]

    async def settled(self, *events: Message) -> Settled:
        return await settle("topic", came(*events), self.handle, self.fill)


async def test_what_was_missing_comes_first_then_the_message_that_missed_it() -> None:
    changes = Changes(event("a", 1), event("a", 2), event("a", 3), event("a", 4))
    settled = await changes.settled(event("b", 1), event("a", 3), event("b", 2))
    assert changes.applied == [("b", 1), ("a", 1), ("a", 2), ("a", 3), ("b", 2)]
    assert settled == Settled({"applied": 5}, {}, 103)


async def test_who_is_away_stops_nothing_before_the_gap_and_lets_nothing_past_it() -> None:
    changes = Changes()
    settled = await changes.settled(event("b", 1), event("b", 2, b"bad"), event("a", 3), event("c", 1, b"bad"))
    assert changes.applied == [("b", 1)]
    assert settled.next_offset == 102
    assert settled.poison == {101: "it is bad"}, "what stands behind the gap is met again"
    assert settled.waits is not None
    assert "away" in settled.waits


async def test_a_gap_of_which_one_version_is_not_there_yet_waits() -> None:
    changes = Changes(event("a", 1))
    settled = await changes.settled(event("a", 3))
    assert changes.applied == []
    assert settled.next_offset == 100
    assert settled.waits is not None


async def test_poison_is_filled_by_what_the_api_has_of_it() -> None:
    changes = Changes(event("a", 1), event("a", 2))
    settled = await changes.settled(event("a", 1), event("a", 2, b"bad"), event("a", 3))
    assert changes.applied == [("a", 1), ("a", 2), ("a", 3)]
    assert settled.poison == {101: "it is bad"}


async def test_behind_poison_that_nobody_understands_all_later_versions_leave_in_their_order() -> None:
    changes = Changes(event("a", 1), event("a", 2, b"bad"), event("a", 3))
    settled = await changes.settled(event("a", 1), event("a", 2, b"bad"), event("a", 3), event("b", 1), event("a", 4))
    assert changes.applied == [("a", 1), ("b", 1)]
    assert list(settled.poison) == [101, 102, 104]
    assert settled.poison[102] == "an event before it cannot be applied: it is bad"
    assert settled.next_offset == 105


async def test_a_filler_that_gives_no_events_is_a_gap_that_waits() -> None:
    changes = Changes(Message(b"a", b"good", []))
    changes.fill = _nonsense  # type: ignore[method-assign]
    settled = await changes.settled(event("a", 2))
    assert settled.waits is not None


async def _nonsense(key: str, after_version: int) -> Sequence[Message]:
    return [Message(key.encode(), b"good", [("ce_sequence", b"%d" % after_version)])]


async def test_without_a_filler_a_gap_is_an_error_of_the_program() -> None:
    changes = Changes()
    with pytest.raises(GapError):
        await settle("topic", came(event("a", 2)), changes.handle, None)
