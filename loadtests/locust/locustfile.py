"""The journeys of scenarios.json as users of Locust: docs/load.md. `make load` runs this, and so does

LOAD_SCENARIO=mixed LOAD_RATE=100 LOAD_SECONDS=120 LOAD_WARM_SECONDS=10 LOAD_TARGETS=<file> LOAD_SAMPLES=<file> \
    LOAD_SUMMARY=<file> PYTHONPATH=. loadtests/locust/.venv/bin/locust -f loadtests/locust/locustfile.py --headless \
    --processes 2

Workers send what they have measured to the master, which writes it down, judges it when all have ended, and exits
with 1 when an objective is missed.
"""

import csv
import json
import os
import random
import sys
import time
import uuid
from collections import Counter
from itertools import count, cycle, islice
from pathlib import Path
from urllib.parse import quote

import gevent
from locust import FastHttpUser, LoadTestShape, events, task
from locust.runners import MasterRunner

from loadtests.load import samples, scenario
from loadtests.load.scenario import OBJECTIVES, Objectives

TARGETS = json.loads(Path(os.environ["LOAD_TARGETS"]).read_text())
ADDRESSES = TARGETS["addresses"][0]
SCENARIO = scenario.read(os.environ.get("LOAD_SCENARIO", "mixed"), reports=ADDRESSES["report"] is not None)
RATE = float(os.environ.get("LOAD_RATE", "10"))  # requests a second
SECONDS = float(os.environ.get("LOAD_SECONDS", "0")) or SCENARIO.seconds or 120.0
WARM_SECONDS = float(os.environ.get("LOAD_WARM_SECONDS", "10"))
USERS = SCENARIO.users(RATE)
SPAWNED_PER_SECOND = 100.0
GOLDEN = (5**0.5 - 1) / 2  # its multiples, less their whole part, lie evenly between 0 and 1 for any number of them
PACE_SECONDS = USERS * SCENARIO.requests_per_journey / RATE  # so that all of them together make the rate

measured: list[list[object]] = []  # of a worker, rows of samples.COLUMNS not sent yet
counts: Counter[str] = Counter()  # "acknowledged", "dropped" and "failed", of a worker those not sent yet
rows: list[list[object]] = []  # of the master, all of them
numbers = count()  # of a worker's users
under_way: set[int] = set()  # of a worker, the users in the middle of a journey
idle: set[str] = set()  # of the master, the workers that have reported the last of what they had
started_at = ends_at = 0.0  # of a worker, epoch and monotonic


class Visitor(FastHttpUser):
    """Makes a journey every PACE_SECONDS, in turn, each time as another customer. A failed request ends its journey."""

    host = ADDRESSES["orders"]
    network_timeout = connection_timeout = 30.0

    def on_start(self) -> None:
        """Users begin one after the other in the mix, and evenly over the pace however many they are, as k6's do."""
        begins = next(numbers) * (self.environment.parsed_options.processes or 1) + self.environment.runner.worker_index
        self.journeys = islice(cycle(SCENARIO.deck), begins % len(SCENARIO.deck), None)
        late = begins * GOLDEN % 1 * PACE_SECONDS
        self.due_at = time.perf_counter() + late
        gevent.sleep(late)

    def wait_time(self) -> float:
        """Until the next journey is due. One that is due before this has ended is dropped."""
        self.due_at += PACE_SECONDS
        while (wait := self.due_at - time.perf_counter()) < 0:
            counts["dropped"] += self.due_at < ends_at
            self.due_at += PACE_SECONDS
        return wait

    @task
    def journey(self) -> None:
        """The next one, until the run has ended."""
        if time.perf_counter() >= ends_at:
            return
        under_way.add(id(self))
        try:
            self.made()
        finally:
            under_way.discard(id(self))

    def made(self) -> None:
        """All steps of a journey, as long as they are answered well."""
        customer = popular(TARGETS["customers"])
        self.buyer, self.reader = random.choice(TARGETS["buyers"]), customer["token"]
        self.order_id, self.product = random.choice(customer["orders"]), popular(TARGETS["products"])
        self.word = random.choice(TARGETS["words"])
        for name in next(self.journeys):
            if not getattr(self, name)(name):
                return

    def list_products(self, name: str) -> bool:
        """Of the catalogue, the first page."""
        return self.ask(name, f"{ADDRESSES['catalog']}/v1/products?limit=20")

    def search_products(self, name: str) -> bool:
        """By a word."""
        return self.ask(name, f"{ADDRESSES['catalog']}/v1/search?limit=20&q={quote(self.word)}")

    def get_product(self, name: str) -> bool:
        """Of the catalogue."""
        return self.ask(name, f"{ADDRESSES['catalog']}/v1/products/{self.product}")

    def get_inventory(self, name: str) -> bool:
        """Of the product."""
        return self.ask(name, f"/v1/inventory/{self.product}", self.buyer)

    def place_order(self, name: str) -> bool:
        """Of one unit of the product."""
        return self.place(name, self.product)

    def place_of_one_product(self, name: str) -> bool:
        """Of one unit of what everybody wants, while there is any."""
        return self.place(name, ADDRESSES["sale"])

    def get_order(self, name: str) -> bool:
        """One's own."""
        return self.ask(name, f"/v1/orders/{self.order_id}", self.reader)

    def get_order_events(self, name: str) -> bool:
        """Of one's own order."""
        return self.ask(name, f"/v1/orders/{self.order_id}/events", self.reader)

    def list_orders(self, name: str) -> bool:
        """One's own."""
        return self.ask(name, "/v1/orders?limit=20", self.reader)

    def list_summaries(self, name: str) -> bool:
        """As staff."""
        return self.ask(name, "/v1/order-summaries?limit=20", ADDRESSES["staff"])

    def get_sales(self, name: str) -> bool:
        """As staff, of the last weeks."""
        return self.ask(name, f"/v1/reports/sales?{ADDRESSES['report']}", ADDRESSES["staff"])

    def place(self, name: str, product: str) -> bool:
        """Under a key of its own. The order is the one that the journey goes on with."""
        body = {"currency": "USD", "items": [{"product_id": product, "quantity": 1}]}
        self.reader = self.buyer
        return self.ask(name, "/v1/orders", self.buyer, body=body, key=str(uuid.uuid4()))

    def ask(self, name: str, path: str, token: str | None = None, *, body: object = None, key: str = "") -> bool:
        """Whether the answer is a good one. It is measured, whatever it is."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= {"Idempotency-Key": key} if key else {}
        with self.client.request(
            "POST" if body else "GET", path, name=name, json=body, headers=headers, catch_response=True
        ) as response:
            status, db_ms = response.status_code, samples.database_ms((response.headers or {}).get("Server-Timing"))
            good = db_ms is not None and status == (201 if body else 200)
            if status == 409 and name == "place_of_one_product":
                good = json.loads(response.text)["code"] == "out_of_stock"
            if status == 201:
                counts["acknowledged"] += 1
                self.order_id = json.loads(response.text)["order_id"]
            meta, placed = response.request_meta, self.order_id if status == 201 else ""
            measured.append([meta["start_time"] - started_at, name, status, meta["response_time"], db_ms, placed])
            if good:
                response.success()
            else:
                counts["failed"] += 1
                response.failure(f"{status} {response.error} {response.text}")
        return good


class Stages(LoadTestShape):
    """The warm-up, then the scenario's stages, as so many users; None at the end.

    That is when every worker has reported its last answer: Locust itself waits for half a second, which is not enough.
    """

    marked = False  # it has said that the warm-up is over

    def tick(self) -> tuple[int, float] | None:
        """Users, and how many more a second there may be."""
        since = self.get_run_time() - WARM_SECONDS
        if since >= 0 and not self.marked:
            self.marked = True
            sys.stdout.write(f"{os.environ.get('LOAD_MARK', '')}\n")
            sys.stdout.flush()
        times = SCENARIO.times(max(0.0, since / SECONDS))
        if not times and len(idle) >= self.runner.worker_count:
            return None
        return (round(USERS * times) or self.get_current_user_count(), SPAWNED_PER_SECOND)


def popular(ranked: list) -> object:
    """One by Zipf's law: what is on rank r in proportion to 1/r."""
    return ranked[int(len(ranked) ** random.random()) - 1]


@events.test_start.add_listener
def start(**_: object) -> None:
    """Each worker's own clock decides what is warm-up, and when it has ended."""
    global started_at, ends_at
    started_at, ends_at = time.time(), time.perf_counter() + WARM_SECONDS + SECONDS


@events.report_to_master.add_listener
def send(data: dict, **_: object) -> None:
    """What a worker has measured since it last did."""
    data["measured"], data["counts"] = list(measured), dict(counts)
    data["idle"] = bool(ends_at) and time.perf_counter() >= ends_at and not under_way
    measured.clear()
    counts.clear()


@events.worker_report.add_listener
def receive(client_id: str, data: dict, **_: object) -> None:
    """From a worker."""
    if data["idle"]:
        idle.add(client_id)
    rows.extend(data["measured"])
    counts.update(data["counts"])


@events.quitting.add_listener
def judge(environment, **_: object) -> None:
    """All is written, and the exit code says whether every objective was met."""
    if not isinstance(environment.runner, MasterRunner):
        return
    with Path(os.environ["LOAD_SAMPLES"]).open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(samples.COLUMNS)
        writer.writerows(rows)
    found = samples.of_locust(samples.rows(Path(os.environ["LOAD_SAMPLES"])), warm_at=WARM_SECONDS)
    objectives = Objectives.read(Path(os.environ.get("LOAD_OBJECTIVES", OBJECTIVES)))
    missed = samples.missed(found, objectives, dropped=counts["dropped"], failed=counts["failed"])
    summary = {
        "warm_at": WARM_SECONDS,
        "acknowledged": counts["acknowledged"],
        "dropped": counts["dropped"],
        "failed": counts["failed"],
        "missed": missed,
    }
    Path(os.environ["LOAD_SUMMARY"]).write_text(json.dumps(summary))
    environment.process_exit_code = 1 if missed else 0
