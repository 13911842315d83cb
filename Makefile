# Every target sets up what it needs first; when that is done already, the check takes well under a second.
#   make demo      teach a pretrained network new classes, export it, prove the export
#   make test      the test-suite, but for what is slow or wide (make test-all runs all of it)
#   make fuzz      damage real bundles and artifacts by the thousand; FUZZ=200 for a short look
# Variables: PYTHON=python3.12, VENV=.venv, ENGINE=cpu|gpu, ARGS="-k lora" (for pytest), ONLY="runtime vision" (for check-wheels), FUZZ=200 (for fuzz).

PYTHON ?= python3
VENV ?= .venv
ENGINE ?= cpu
ARGS ?=
ONLY ?=
FUZZ ?= 20000
JOBS ?= 2
BIN := $(VENV)/bin
DISTRIBUTIONS := runtime host speech vision text robotics

# One thread a process: the tests run in several processes, and tiny tensors gain nothing from a second thread.
export OMP_NUM_THREADS ?= 1
export PYTHON VENV ENGINE

.DEFAULT_GOAL := help
.PHONY: help setup weights web demo test test-wide test-all test-gpu fuzz lint format types imports docs docs-update check-wheels matrix bench freeze clean

help:
	@sed -n 's/^#   make /make /p' Makefile
	@echo "also: setup weights web test-wide test-all test-gpu lint format types imports docs docs-update check-wheels matrix bench freeze clean"

setup:
	@tools/setup.sh

# Weights that the demo and the tests use, into the user's cache; nothing is fetched twice.
weights: setup
	@$(BIN)/polyadapt fetch polyadapt:efficientnet-lite0

# onnxruntime for the examples in JavaScript and their tests; needs node 20 or newer.
web:
	@for folder in web node; do echo "== examples/$$folder"; (cd "examples/$$folder" && npm ci) || exit 1; done

demo: weights
	@rm -rf runs/quickstart
	@OMP_NUM_THREADS=2 $(BIN)/polyadapt run examples/quickstart.toml --out runs/quickstart
	@$(BIN)/polyadapt verify runs/quickstart/bundle
	@$(BIN)/python examples/classify_digits.py runs/quickstart

test: setup
	@$(MAKE) --no-print-directory weights || echo "weights could not be fetched: the tests that need them are skipped, each with its reason"
	@$(BIN)/pytest -n $(JOBS) --dist worksteal -m "not slow and not wide" $(ARGS)

# What `make test` takes some of, for every family: exports and bundles. Together the two are run before a merge.
test-wide: setup
	@$(BIN)/pytest -n $(JOBS) --dist worksteal -m "wide and not slow" $(ARGS)

# The slow ones too: every task of every family exported, real weights, runs that are killed.
test-all: setup
	@$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

# Training and bundles on an NVIDIA GPU, with the engine for it in place of the other one; `make test` puts that back.
test-gpu: ENGINE := gpu
test-gpu: setup
	@POLYADAPT_TEST_GPU=1 $(BIN)/pytest tests/gpu $(ARGS)

# Bundles and artifacts, damaged by seed: refused by an error of the runtime's own, or they run. Nothing else.
fuzz: setup
	@$(BIN)/python tools/fuzz.py --count $(FUZZ)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: setup
	@$(BIN)/mypy

# The floors of core, the runtime on its own, plugins that do not know each other.
imports: setup
	@$(BIN)/lint-imports

docs: setup
	@$(BIN)/python tools/docs.py --check
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir site

# Rewrites the pages of the methods and the table in README.md from the registry.
docs-update: setup
	@$(BIN)/python tools/docs.py

# Each distribution's wheel in a fresh environment of its own: host + that plugin, nothing else.
check-wheels: setup
	@$(BIN)/python tools/check_wheels.py $(or $(ONLY),$(DISTRIBUTIONS))

# Every method on every family in every form; writes docs/matrix.md.
matrix: setup
	@$(BIN)/python -m polyadapt.testing.matrix --jobs $(JOBS)

bench: setup
	@missed=""; for name in startup attach slots slots_models artifacts decode logmel export variants train_step train_memory conformer_step frozen_prefix; do \
		echo "== $$name"; $(BIN)/python "benchmarks/$$name.py" || missed="$$missed $$name"; done; \
	$(BIN)/python benchmarks/summary.py; test -z "$$missed" || { echo "a target is missed, or the run failed:$$missed"; exit 1; }

# After an upgrade that passed `make test`: pin what is installed.
freeze: setup
	@{ sed -n '/^#/p' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable; } > constraints.txt.partial
	@mv constraints.txt.partial constraints.txt

clean:
	rm -rf build dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find core exporters plugins tests tools examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
