"""`python -m services.cli.asyncapi` releases the schemas of events into docs/events and writes docs/asyncapi.json.

The document (AsyncAPI 3.0) describes what is on Kafka: topics, keys, headers, and the events by their schemas.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from services.common.stream import PARTITIONS, REPLICAS, topic_config
from services.contracts import envelope
from services.contracts.compatibility import breaking
from services.contracts.schema import ANNOTATIONS, FOLDER, Schema, example, inlined, load_all

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
FILE: Final = DOCS / "asyncapi.json"
RELEASED: Final = DOCS / "events"

_KAFKA_BINDING: Final = {"bindingVersion": "0.5.0"}  # of the Kafka bindings of AsyncAPI
_TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_INTRODUCTION: Final = """\
Every change of an order or a product, once it is committed, as a CloudEvent 1.0 in binary mode: its attributes are \
headers, its data is the value.

The events of one order (or product, or payment) have its id as their key, so they are in one partition, and come in \
the order of their `version`, 1..n, each at least once: drop what you have seen. Ignore types, headers and members you \
do not know: they may come within a major version."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: what its events are about, what they call its id, and what a consumer is told of it."""

    name: str  # in the document
    address: str
    source: str
    id_member: str
    prefix: str  # of the types that are on it
    description: str


TOPICS: Final = (
    Topic(
        "orders",
        envelope.ORDERS_TOPIC,
        envelope.ORDERS_SOURCE,
        "order_id",
        "order.",
        "What happens to orders. Kept for a week; all of an order's events are at GET /v1/orders/{id}/events.",
    ),
    Topic(
        "products",
        envelope.CATALOG_TOPIC,
        envelope.CATALOG_SOURCE,
        "product_id",
        "product.",
        "The products of the catalogue, each event a whole one. Compacted: the newest of every product is kept.",
    ),
    Topic(
        "payments",
        envelope.PAYMENTS_TOPIC,
        envelope.PAYMENTS_SOURCE,
        "order_id",
        "payment.",
        "The payments of orders, each event a whole one; an order has at most one. Kept for a week.",
    ),
)


def document() -> dict[str, Any]:
    """The AsyncAPI document, the same on every machine."""
    schemas = load_all()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Events of the order backend",
            "version": "1.0.0",
            "description": _INTRODUCTION,
            "license": {"name": "Apache-2.0"},
            "tags": [{"name": topic.name, "description": topic.description} for topic in TOPICS],
        },
        "defaultContentType": envelope.CONTENT_TYPE,
        "servers": {
            "kafka": {
                "host": "{host}:{port}",
                "protocol": "kafka",
                "description": "Where `make up` has its broker, unless told otherwise.",
                "variables": {"host": {"default": "127.0.0.1"}, "port": {"default": "9092"}},
            }
        },
        "channels": {topic.name: _channel(topic, schemas) for topic in TOPICS},
        "operations": {f"publish_{topic.name}": _operation(topic, schemas) for topic in TOPICS},
        "components": {
            "messages": {name: _message(topic, schemas[name]) for topic in TOPICS for name in _names(topic, schemas)},
            "messageTraits": {topic.name: _trait(topic) for topic in TOPICS},
        },
    }


def rendered() -> bytes:
    """The document as the file has it."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def release() -> None:
    """docs/events has the schemas there are. ValueError, and nothing is written, when that breaks a consumer."""
    if broken := breaking(load_all(RELEASED), load_all()):
        raise ValueError("\n".join(("this breaks consumers (docs/events.md):", *broken)))
    for path in FOLDER.glob("*.json"):
        (RELEASED / path.name).write_bytes(path.read_bytes())


def _names(topic: Topic, schemas: Mapping[str, Schema]) -> list[str]:
    return [name for name in schemas if name.startswith(topic.prefix)]


def _channel(topic: Topic, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    config = topic_config(topic.address)
    return {
        "address": topic.address,
        "title": topic.address,
        "description": topic.description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _names(topic, schemas)},
        "bindings": {
            "kafka": {
                "topic": topic.address,
                "partitions": PARTITIONS,
                "replicas": REPLICAS,
                "topicConfiguration": {
                    name: [value] if name == "cleanup.policy" else int(value) for name, value in config.items()
                },
                **_KAFKA_BINDING,
            }
        },
    }


def _operation(topic: Topic, schemas: Mapping[str, Schema]) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{topic.name}"},
        "title": f"Publish {topic.name}",
        "summary": "outbox-relay publishes what has been committed, in order per key, at least once.",
        "messages": [{"$ref": f"#/channels/{topic.name}/messages/{name}"} for name in _names(topic, schemas)],
    }


def _message(topic: Topic, schema: Schema) -> dict[str, Any]:
    event = example(schema)
    headers = envelope.headers(
        event_id=event["event_id"],
        type_=event["type"],
        source=topic.source,
        subject=event[topic.id_member],
        time=event["occurred_at"],
        version=event["version"],
        traceparent=_TRACEPARENT,
    )
    payload = {keyword: value for keyword, value in inlined(schema).items() if keyword not in ("$schema", "$id")}
    del payload["examples"]  # it is one of the message
    return {
        "name": event["type"],
        "title": schema["title"],
        "summary": schema["description"],
        "traits": [{"$ref": f"#/components/messageTraits/{topic.name}"}],
        "payload": payload,
        "examples": [
            {"name": event["type"], "headers": {name: value.decode() for name, value in headers}, "payload": event}
        ],
    }


def _trait(topic: Topic) -> dict[str, Any]:
    """What the messages of a topic have in common: headers and key."""
    placed = inlined(load_all()["order.placed.v1"])["properties"]
    ulid = {keyword: value for keyword, value in placed["order_id"].items() if keyword not in ANNOTATIONS}
    text = {"type": "string"}
    headers = {
        "ce_specversion": {"const": "1.0"},
        "ce_id": {**ulid, "description": "of the event: the same each time it is sent"},
        "ce_type": {**text, "description": "ignore those you do not know"},
        "ce_source": {"const": topic.source},
        "ce_subject": {**ulid, "description": f"the {topic.id_member}"},
        "ce_time": placed["occurred_at"],
        "ce_sequence": {**text, "pattern": r"^\d{20}$", "description": "the version, so that text sorts as numbers do"},
        "ce_partitionkey": {**ulid, "description": "the key"},
        "content-type": {"const": envelope.CONTENT_TYPE},
        "traceparent": {**text, "description": "of the request that made the change (W3C Trace Context)"},
    }
    return {
        "contentType": envelope.CONTENT_TYPE,
        "headers": {
            "type": "object",
            "required": [name for name in headers if name != "traceparent"],
            "properties": headers,
        },
        "bindings": {"kafka": {"key": {**ulid, "description": f"the {topic.id_member}"}, **_KAFKA_BINDING}},
    }


if __name__ == "__main__":
    try:
        release()
    except ValueError as error:
        sys.exit(str(error))
    FILE.write_bytes(rendered())
