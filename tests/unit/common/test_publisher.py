"""Where a key goes."""

from aiokafka.partitioner import DefaultPartitioner
from hypothesis import given
from hypothesis import strategies as st

from services.common.publisher import partition_of


@given(st.binary(max_size=64), st.integers(1, 100))
def test_a_key_goes_to_the_partition_every_other_client_looks_for_it_in(key: bytes, count: int) -> None:
    partitions = list(range(count))
    assert partition_of(key, partitions) == DefaultPartitioner()(key, partitions, partitions)


def test_what_has_no_key_goes_to_any_partition() -> None:
    assert {partition_of(None, [3, 4]) for _ in range(100)} == {3, 4}
