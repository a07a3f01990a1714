# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
BIN := .venv/bin
DEMO ?=
PYTEST ?=
AGENTS ?=
RESULTS ?=

.PHONY: help
help:  ## List what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: install
install:  ## Make .venv with every pinned package, vLLM's CPU build included (a few minutes, once)
	@scripts/install.sh

.PHONY: demo
demo: install  ## Replay recorded coding agents under FCFS and MARS; DEMO="--help" lists its flags
	@$(BIN)/mars bench demo $(DEMO)

.PHONY: test
test: check  ## Check, then run every test; PYTEST="tests/core -x" narrows it
	@$(BIN)/python -m pytest -q $(PYTEST)

.PHONY: check
check: install  ## Format, lint, types, architecture
	@$(BIN)/ruff format --check --quiet . || { echo 'fix: make format'; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/python scripts/check_shape.py
	@$(BIN)/lint-imports --no-cache | tail -n 4
	@$(BIN)/pyright

.PHONY: format
format: install  ## Format the code and apply the safe fixes
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .

.PHONY: bench
bench: install  ## Measure the parts that have a time budget (plug-in, stream, simulator)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

.PHONY: results
results: install  ## Make every report under results/ anew (an hour on two cores; goes on where it stopped); RESULTS="NAME..."
	@$(BIN)/python scripts/results.py $(RESULTS)

.PHONY: agents
agents: install  ## Install real agents, run each against MARS, write the compatibility table; AGENTS="--help"
	@$(BIN)/mars bench agents $(AGENTS)

.PHONY: versions
versions: install  ## Run the plug-in on every supported vLLM (fetches the official wheels, once)
	@scripts/check_vllm_versions.sh

.PHONY: lock
lock:  ## Resolve requirements/ci.lock anew
	@scripts/lock.sh

.PHONY: clean
clean:  ## Remove the environment, caches and local runs
	rm -rf .venv dist build runs .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts -name __pycache__ -prune -exec rm -rf {} +
