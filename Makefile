# make run     train the demo policy by SRPO (sets everything up on a fresh machine)
# make test    all tests (sets everything up too); make quick leaves out the slow ones
# make check   what must be clean before a change lands: lint, format, types, tests
# make install  only the set-up: .venv with locked versions
# make browser  chromium, which drives the pages in tests (Debian, as root); without it they skip
# make bench   measure against TRL and ourselves, one table (BENCH=--quick to try it, docs/PERFORMANCE.md)
# make docs    write the generated parts of docs/ anew
# make lock    resolve requirements.lock anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install run test quick check lint format docs bench lock browser clean

install: $(READY)

run: $(READY)
	$(BIN)/srpo train demo

test: $(READY)
	$(BIN)/python -m pytest

quick: $(READY)
	$(BIN)/python -m pytest -m "not slow"

check: lint test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)
	$(BIN)/python docs/generate.py

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

# torch first: its exact version is the CPU build on a machine that has one, and what comes later
# must not pull another.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; }

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --editable '.[dev]'
	{ head -n 1 requirements.lock; \
	  .venv-lock/bin/pip freeze --exclude-editable | sed 's/^torch==.*/torch==2.13.0/'; } > new.lock
	mv new.lock requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
