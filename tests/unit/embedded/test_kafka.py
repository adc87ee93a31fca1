"""What is made for Kafka before it starts."""

from services.embedded.kafka import cluster_id


def test_a_cluster_id_is_never_taken_for_an_option() -> None:
    ids = {cluster_id() for _ in range(2000)}
    assert len(ids) == 2000
    assert {len(found) for found in ids} == {22}
    assert not any(found.startswith("-") for found in ids)
