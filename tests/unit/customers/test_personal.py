"""What is sealed can be opened again, nothing else can, and nothing is shown by mistake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.customers import countries, personal
from services.customers.personal import Destination, Person, sealed

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
MAYBE = st.none() | TEXT
PERSONS = st.builds(Person, MAYBE, MAYBE, MAYBE)
DESTINATIONS = st.builds(
    Destination, TEXT, st.lists(TEXT, max_size=4).map(tuple), TEXT, MAYBE, MAYBE, st.sampled_from(["GB", "DE"]), MAYBE
)


@given(PERSONS, DESTINATIONS)
def test_what_is_sealed_comes_back_as_it_was(person: Person, destination: Destination) -> None:
    assert personal.person(sealed(person)) == person
    assert personal.destination(sealed(destination)) == destination


@given(st.binary(max_size=50).filter(lambda stored: stored[:1] != personal.CLEAR))
def test_what_was_made_in_another_way_is_refused(stored: bytes) -> None:
    for opened in (personal.person, personal.destination):
        with pytest.raises(ValueError, match="not known here"):
            opened(stored)


@given(PERSONS, DESTINATIONS)
def test_neither_shows_what_it_holds(person: Person, destination: Destination) -> None:
    assert repr(person).startswith("<services.customers.personal.Person object at ")
    assert repr(destination).startswith("<services.customers.personal.Destination object at ")


def test_there_are_249_countries() -> None:
    assert len(countries.CODES) == 249  # ISO 3166-1, since South Sudan
    assert {"GB", "US", "SS", "XK", "UK"} & countries.CODES == {"GB", "US", "SS"}
