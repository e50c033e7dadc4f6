# Every target sets up its own environment first: `make demo` works in a fresh clone.
#
#   PYTHON=python3.12       the interpreter that .venv is made with (default: the first one >= 3.11)
#   CONSTRAINTS=            install within the ranges of pyproject.toml instead of the pinned
#                           versions, for example to get another build of torch
#   PYTEST_ARGS="-k nms"    more arguments for pytest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS ?= constraints.txt
PYTHON ?=
PYTEST_ARGS ?=
RUN ?= runs/demo

# Each is made last. While pip is at work there is the third file: if it is still there next time,
# the environment was left half installed, which pip does not notice, and is made again.
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
INSTALLING := $(VENV)/.installing
# Two processes; the tests that use Ray share one of them, and its Ray (tests/conftest.py).
PYTEST = $(BIN)/python -m pytest --numprocesses 2 --dist loadscope
PIP_INSTALL = $(BIN)/python -m pip install -qq --no-input $(CONSTRAINTS:%=--constraint %)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup setup-dev demo test test-all lint audit docs bench gpu mlflow tiny-weights clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(INSTALLED) ## create .venv with what running needs; does nothing when up to date

setup-dev: $(INSTALLED_DEV) ## the same, with what tests, checks and benchmarks need

$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@recent='import sys; sys.exit(sys.version_info < (3, 11))'; \
	if [[ -e $(INSTALLING) ]] || ! $(BIN)/python -c "$$recent" 2>/dev/null \
	    || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  found=; \
	  for python in $(or $(PYTHON),python3 python3.11 python3.12 python3.13); do \
	    if "$$python" -c "$$recent" 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [[ -z "$$found" ]]; then \
	    echo "make setup needs Python 3.11 or newer; $(or $(PYTHON),python3) is" \
	      "$$($(or $(PYTHON),python3) --version 2>&1 || true)." \
	      "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$("$$found" --version)"; \
	  "$$found" -m venv --clear $(VENV); \
	fi
	@touch $(INSTALLING)
	@echo "Installing into $(VENV) (about 2 GB; some minutes the first time)"
	@$(PIP_INSTALL) --editable .
	@rm -f $(INSTALLING) && touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@touch $(INSTALLING)
	@echo "Installing into $(VENV) what tests and checks need"
	@$(PIP_INSTALL) --editable ".[dev]"
	@rm -f $(INSTALLING) && touch $@

demo: setup ## synthetic videos through every stage to a report in runs/demo
	$(BIN)/python -m jobs.demo --out runs/demo

test: setup-dev ## the tests, without the slow ones and those that need a GPU
	$(PYTEST) -m "not slow and not gpu" $(PYTEST_ARGS)

test-all: setup-dev ## every test that needs no GPU, with new random examples
	HYPOTHESIS_PROFILE=free $(PYTEST) -m "not gpu" $(PYTEST_ARGS)

lint: setup-dev ## style, formatting, types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

audit: setup-dev ## what is dangerous in the code, by bandit; SECURITY.md says why some is there
	$(BIN)/python -m bandit --quiet --configfile pyproject.toml --recursive jobs pipelines idol ops

docs: setup-dev ## the documentation as a site, in build/site/index.html
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --quiet

# Left out: helpers without a table, what needs arguments, what takes hours.
NO_BENCH = ablation association_stored chaos cluster_chaos consistent fuzz fuzz_readers image leave_one_out long_stream machine method_figures \
  mutations offline plain_evaluator plain_loop processes real_clips recipe_steps replay report_page rivals simulated_detections sweep_time sweeps \
  tiny_training tiny_weights training_sweep

bench: setup-dev ## every benchmark that needs neither arguments nor hours; each prints a table
	@for file in $(filter-out $(NO_BENCH:%=benchmarks/%.py),$(wildcard benchmarks/[a-z]*.py)); do \
	  module=$${file%.py}; echo "== $$file"; $(BIN)/python -m "$${module//\//.}"; \
	done

gpu: setup-dev ## parity tests, then timings, on a CUDA device
	PYTHON=$(BIN)/python benchmarks/gpu.sh

mlflow: setup ## browse the runs logged in RUN (default: runs/demo) at http://127.0.0.1:5000
	$(BIN)/python -m mlflow ui --backend-store-uri sqlite:///$(RUN)/mlflow.db --host 127.0.0.1 --port 5000

tiny-weights: setup ## train the shipped tiny weights again, on synthetic videos only
	$(BIN)/python -m benchmarks.tiny_weights --out runs/tiny-weights --install

clean: ## remove caches, builds and the demo's output; .venv and other runs stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build runs/demo *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
