# Every target sets up what it needs: a machine with python3 (3.11 or newer) and make is enough.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
T ?= tests
# The whole suite waits a good deal, so two processes share its files; a part runs in one, which can print as it goes.
PROCESSES ?= $(if $(filter tests,$(T)),2,0)
DEPLOYED := $(addprefix tests/contract/,test_images.py test_compose.py test_kubernetes.py test_deployment_page.py)

.PHONY: help demo up test test-all check fix bench pocket-critic lock clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## Start everything, judge the examples, print the verdicts, stop
	@$(BIN)/nightcourt demo

up: $(READY)  ## Start the whole embedded stack and keep it running until Ctrl-C
	@$(BIN)/nightcourt up

test: $(READY)  ## The test suite; a part of it with T=tests/unit
	$(BIN)/python -m pytest $(T) -n $(PROCESSES) --dist loadfile

test-all: $(READY)  ## The test suite with the slow and long tests in full
	$(BIN)/python -m pytest $(T) --full

check: $(READY)  ## Lint, types and import rules; known vulnerabilities; images, compose file and manifests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint infra/docker/Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(BIN)/python -m infra.audit
	$(BIN)/python -m pytest -q $(DEPLOYED)

fix: $(READY)  ## Format, and mend what the linter can mend by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Side-by-side measurements, printed as JSON
	$(BIN)/python -m benchmarks

pocket-critic: $(READY)  ## Train the embedded judge anew: DATA=folder of its sets, OUT=folder, SEEDS="1 2 3"
	@./infra/pocket-critic/run.sh "$(or $(DATA),$(error set DATA to the folder of sets that infra/pocket-critic/DATA.md names))" "$(or $(OUT),build/pocket-critic)" $(SEEDS)

lock:  ## Compile requirements/*.txt anew from pyproject.toml (needs uv)
	./infra/lock.sh

clean:  ## Remove the virtual environment and the caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Hashes are required and dependencies are not resolved again: what is installed is what the lock lists.
# `--only-binary` proves that nothing is compiled. The project itself is installed last, editable.
$(READY): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nightcourt needs Python 3.11 or newer: set PYTHON=python3.x")'
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv --quiet --allow-existing --seed --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --only-binary :all: -r requirements/dev.txt && \
	  uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . ; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -r requirements/dev.txt && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . ; \
	fi
	@touch $@
