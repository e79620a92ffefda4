# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` do all the set-up that they need, from a clean clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Test processes; each starts its own Redis and servers.
JOBS   ?= 2

.PHONY: help demo test faults soak check fmt stubs bench bench-serving coverage clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## one model in, every artifact out, served from this machine and from an edge agent
	$(BIN)/dovetail demo

test: $(READY) ## every test that this machine can run
	$(BIN)/pytest -n $(JOBS) --dist loadgroup

faults: $(READY) ## kills, power cuts, full disks, slow links; a part of `make test`
	$(BIN)/pytest -n $(JOBS) --dist loadgroup tests/faults

SOAK_MINUTES ?= 20
soak: $(READY) ## random operations under random kills; prints a ledger of losses, duplicates and stuck jobs
	$(BIN)/python -m tests.faults.soak --minutes $(SOAK_MINUTES)

check: $(READY) ## style, types, import rules, stub drift
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m dovetail.pb.generate --check

fmt: $(READY) ## format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

stubs: $(READY) ## generate dovetail/pb from protos/
	$(BIN)/python -m dovetail.pb.generate

bench: $(READY) ## figures with units, also written to bench-results/*.json (needs a quiet machine)
	$(BIN)/python -m tests.bench

bench-serving: $(READY) ## what a request costs here and in MLServer, KServe and PyTriton, each in a virtual environment of its own
	$(BIN)/python -m tests.bench.serving

coverage: $(READY) ## ONNX's own backend tests through everything; writes docs/coverage.md (some minutes)
	$(BIN)/python -m tests.coverage

clean: ## remove everything that make made
	rm -rf $(VENV) build dist bench-results .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
