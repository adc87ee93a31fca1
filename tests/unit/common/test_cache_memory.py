"""L1 keeps what was used last, within its room, and nothing that was dropped while it was asked for."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from services.common.cache_memory import BESIDE_BYTES, Held, Memory
from services.common.cached import Entry, Key
from services.contracts.cache import INVENTORY, Room


def held(body: bytes = b"", *, until: float = 1.0) -> Held:
    return Held(Entry("", 1, body), 0, until)


def keep(memory: Memory, name: str, what: Held) -> None:
    right = memory.asks(name)
    assert right is not None
    memory.answered(name, right, what)


def test_what_was_used_longest_ago_makes_room_for_what_is_new() -> None:
    memory = Memory(Room(entries=2, bytes=10**6))
    keep(memory, "a", held())
    keep(memory, "b", held())
    assert memory.get("a", 0.0)
    keep(memory, "c", held())
    assert memory.get("b", 0.0) is None
    assert memory.get("a", 0.0)
    assert memory.get("c", 0.0)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3_000), st.sampled_from(["keep", "drop"]))))
def test_it_never_holds_more_than_its_room_and_counts_what_it_holds(steps: list[tuple[str, int, str]]) -> None:
    room = Room(entries=3, bytes=4_000)
    memory = Memory(room)
    for name, size, step in steps:
        if step == "keep":
            keep(memory, name, held(b"x" * size))
        else:
            memory.drop(name)
        there = [found for each in "abcdef" if (found := memory.get(each, 0.0))]
        assert len(memory) == len(there) <= room.entries
        assert memory.bytes == sum(BESIDE_BYTES + len(each.entry.body) for each in there) <= room.bytes


def test_what_alone_takes_more_than_the_room_is_not_kept_and_drives_nothing_out() -> None:
    memory = Memory(Room(entries=3, bytes=2_000))
    keep(memory, "a", held())
    keep(memory, "b", held(b"x" * 2_000))
    assert memory.get("b", 0.0) is None
    assert memory.get("a", 0.0)


def test_bytes_are_counted_as_no_fewer_than_python_takes() -> None:
    memory = Memory(Room(entries=10_000, bytes=10**9))
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(5_000):
        keep(
            memory,
            Key(INVENTORY, f"{number:026}").fence,
            Held(Entry("", number + 1_000, b"%0120d" % number), 1_795_416_722_242 + number, 17_000.5 + number),
        )
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert taken <= memory.bytes <= 3 * taken


def test_what_has_lived_its_time_is_gone() -> None:
    memory = Memory(Room(3, 10**6))
    keep(memory, "a", held(until=10.0))
    assert memory.get("a", 9.999)
    assert memory.get("a", 10.0) is None
    assert (len(memory), memory.bytes) == (0, 0)


def test_an_answer_that_was_dropped_while_it_was_asked_for_is_not_kept() -> None:
    memory = Memory(Room(3, 10**6))
    for flush in (False, True):
        right = memory.asks("a")
        assert right
        if flush:
            memory.flush()
        else:
            memory.drop("a")
        memory.answered("a", right, held())
        assert memory.get("a", 0.0) is None


def test_who_asked_before_the_news_takes_nothing_from_who_asks_after_it() -> None:
    memory = Memory(Room(3, 10**6))
    old = memory.asks("a")
    memory.drop("a")
    new = memory.asks("a")
    assert old
    assert new
    memory.answered("a", old, held(b"old"))
    memory.answered("a", new, held(b"new"))
    found = memory.get("a", 0.0)
    assert found
    assert found.entry.body == b"new"


def test_one_at_a_time_may_keep_and_gives_the_right_back_when_there_was_nothing() -> None:
    memory = Memory(Room(3, 10**6))
    right = memory.asks("a")
    assert right
    assert memory.asks("a") is None
    memory.answered("a", right, None)
    assert memory.asks("a")
