# `make quickstart` and `make test` do all set-up themselves. They need Python, make and, for tests, a C++ compiler.

# PYTHON           the interpreter that .venv is made with
# BENCH            further arguments of the benchmarks: `make bench BENCH="--cells sft-full --rounds 9"`
# SECONDS_OF_SLOW  after how long test-slow-core begins no further test
# CONSTRAINTS      exact versions to install; `make CONSTRAINTS= quickstart` installs within pyproject.toml's ranges
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
SECONDS_OF_SLOW ?= 1500

BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
# What pip installs of the package, into an environment
INSTALL = -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e
MODEL := models/all-MiniLM-L6-v2
RUN := runs/quickstart
PEERS := hf_trainer trl_sft llama_factory
GPU_PEERS := hf_trainer trl_sft
# One thread a process: tests start several, and two threads on contended cores are many times slower
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
FAST = not slow and not gpu and not cluster

# DeepSpeed looks for ninja on the path
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help venv quickstart test test-slow test-slow-core test-all test-cluster bench bench-scaling bench-gpu lint compiler clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

quickstart: $(READY) ## set up, fetch a small model, fine-tune it, show the result (minutes)
	@$(BIN)/python quickstart/fetch_model.py $(MODEL)
	@$(BIN)/python train.py recipes/quickstart.yaml --output_dir $(RUN) --train.resume never
	@$(BIN)/python quickstart/compare.py $(RUN)

test: lint compiler ## set up, then lint and the fast tests
	@# Two at a time, but alone where a test starts several processes. A file's tests share what is expensive
	$(PYTEST) -n 2 --dist loadscope -m "$(FAST) and not distributed"; alone=$$?; \
	$(PYTEST) -m "$(FAST) and distributed" && exit $$alone

test-slow: compiler ## the slow tests alone
	$(PYTEST) -m "slow and not gpu and not cluster" || [ $$? -eq 5 ]  # 5: there are none

test-slow-core: compiler ## slow tests of parity and of resuming, as many as SECONDS_OF_SLOW hold
	$(PYTEST) -m "slow and not gpu and not cluster" --seconds $(SECONDS_OF_SLOW) tests/parity tests/resume

test-all: test test-slow ## the fast tests, then the slow ones

test-cluster: compiler ## slurm/ on a real cluster of two nodes on this machine (root; slurm-wlm munge iproute2)
	$(PYTEST) -m cluster -rs tests/slurm

bench: $(PEERS:%=benchmarks/.environments/%/.ready) benchmarks/.environments/onecurve/.ready $(READY) ## the same work under onecurve and its peers (20 minutes)
	$(BIN)/python benchmarks/peers.py --json runs/bench/peers.json $(BENCH)

bench-scaling: $(READY) ## what a step costs as it grows, as tables and docs/scaling.png (a quarter of an hour)
	$(BIN)/python $(INSTALL) ".[bench]"
	$(BIN)/python benchmarks/scaling.py --json runs/bench/scaling.json --plot docs/scaling.png $(BENCH)

bench-gpu: $(GPU_PEERS:%=benchmarks/.environments/%/.ready) benchmarks/.environments/onecurve/.ready $(READY) ## Llamas of 1 and 8 billion weights on one GPU
	for peer in $(GPU_PEERS); do benchmarks/.environments/$$peer/bin/python -m pip install --quiet -r benchmarks/runners/gpu.txt; done
	$(BIN)/python benchmarks/gpu.py --json runs/bench/gpu.json $(BENCH)

benchmarks/.environments/%/.ready: benchmarks/runners/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet -r $<
	@touch $@

# As users have it: .venv may have extras besides, which PEFT and transformers import where they are installed
benchmarks/.environments/onecurve/.ready: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(INSTALL) .
	@touch $@

lint: $(DEV_READY) ## ruff, mypy and the import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

venv: $(DEV_READY) ## .venv with the package, its tests' tools and tensorboard

# Installed anew only when what is to be installed has changed. The quickstart needs the package alone
$(READY): pyproject.toml $(CONSTRAINTS)
	@command -v $(PYTHON) >/dev/null || { echo "onecurve needs Python 3.10 or newer; there is no '$(PYTHON)'." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("onecurve needs Python 3.10 or newer; $(PYTHON) is %d.%d: give another with `make PYTHON=python3.x`." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) .
	@touch $@

$(DEV_READY): $(READY)
	$(BIN)/python $(INSTALL) ".[dev,tensorboard]"
	@touch $@

# DeepSpeed compiles a small operator when it first starts
compiler: $(DEV_READY)
	@command -v c++ g++ >/dev/null || { echo "The tests need a C++ compiler: install g++ (Debian: apt-get install g++)." >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig as s; os.path.exists(s.get_path("include") + "/Python.h") or sys.exit("The tests need the headers of Python %d.%d (Debian: apt-get install python3-dev)." % sys.version_info[:2])'

clean: ## remove .venv, caches and build leftovers; runs/ and models/ stay
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './runs/*' -prune -exec rm -rf {} +
