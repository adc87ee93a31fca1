"""Whatever comes when: versions 1..n, each once and in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.realtime.sequence import Sequence

VERSIONS = 12
FETCH, PAGE = "fetch", 3  # small pages, so that live events fall between them


class Follower:
    """A subscriber as the gateway has it: it fetches while it is behind; `stored` is what pages can have."""

    def __init__(self, after: int, *, behind: bool) -> None:
        self.after = after
        self.sequence = Sequence(after, behind=behind)
        self.had: list[int] = []
        self.stored = after
        self.page: list[int] | None = None
        self.last_page = False

    def live(self, version: int) -> None:
        self.stored = max(self.stored, version)  # committed before it is on Kafka
        if self.sequence.live(version):
            self.had.append(version)

    def step(self) -> None:
        """One step of fetching: a page is read, or the next event of the one that was read is taken."""
        if self.page is None:
            if self.sequence.behind:
                rest = list(range(self.sequence.last + 1, self.stored + 1))
                self.page, self.last_page = rest[:PAGE], len(rest) <= PAGE
        elif self.page:
            version = self.page.pop(0)
            self.sequence.fetched(version)
            self.had.append(version)
        else:
            self.page = None
            if self.last_page:
                self.sequence.fetched_all()


# What the live feed brings, in any order of its own: each version perhaps never, perhaps often; and fetching between.
arrivals = st.lists(
    st.one_of(st.just(FETCH), st.integers(min_value=1, max_value=VERSIONS), st.just("stored")), max_size=60
)


@given(after=st.integers(min_value=0, max_value=VERSIONS), arrivals=arrivals)
def test_any_interleaving_of_pages_live_events_duplicates_and_gaps_gives_each_version_once_in_order(
    after: int, arrivals: list[int | str]
) -> None:
    follower = Follower(after, behind=True)
    for arrival in arrivals:
        if isinstance(arrival, int):
            follower.live(arrival)
        elif arrival == FETCH:
            follower.step()
        else:
            follower.stored += 1  # committed; its message is lost, or comes later than those after it
        assert follower.had == list(range(after + 1, after + 1 + len(follower.had)))
    for _ in range(4 * (follower.stored + 2)):
        follower.step()
    assert not follower.sequence.behind
    # Whatever is known of, by a page or by the live feed, has been sent.
    assert follower.sequence.last >= max([after, *(one for one in arrivals if isinstance(one, int))])
    assert follower.had == list(range(after + 1, follower.sequence.last + 1))


@given(first=st.integers(min_value=1, max_value=VERSIONS), arrivals=arrivals)
def test_an_order_that_begins_with_its_next_event_goes_on_from_there(first: int, arrivals: list[int | str]) -> None:
    follower = Follower(first - 1, behind=False)
    follower.live(first)
    assert follower.had == [first], "it is sent at once, and nothing before it"
    for arrival in arrivals:
        if isinstance(arrival, int):
            follower.live(arrival)
        else:
            follower.step()
    for _ in range(4 * (follower.stored + 2)):
        follower.step()
    assert follower.had == list(range(first, follower.stored + 1))


def test_nothing_is_sent_live_before_the_first_page_has_said_that_it_may_be_seen() -> None:
    sequence = Sequence(0, behind=True)
    assert not sequence.live(1)
    assert (sequence.last, sequence.behind) == (0, True)


def test_events_in_order_are_never_fetched() -> None:
    sequence = Sequence(0, behind=False)
    assert [sequence.live(version) for version in (1, 2, 2, 1, 3)] == [True, True, False, False, True]
    assert not sequence.behind


def test_an_event_that_could_not_be_read_is_fetched() -> None:
    sequence = Sequence(1, behind=False)
    sequence.missed(1)
    assert not sequence.behind
    sequence.missed(2)
    assert sequence.behind
    sequence.fetched(2)
    sequence.fetched_all()
    assert not sequence.behind
    assert sequence.live(3)


def test_a_page_that_leaves_a_version_out_is_an_error_and_not_sent() -> None:
    sequence = Sequence(1, behind=True)
    for version in (1, 3):
        with pytest.raises(ValueError, match=f"version {version} came after 1"):
            sequence.fetched(version)
    assert sequence.last == 1
