# make demo    train a classifier, look at its report, classify pictures with its checkpoint
# make test    lint, the whole suite, and the comparison with the real PyTorch
# make check   lint and the suite only
# make parity-all   the comparison with PyTorch for every model and benchmark, half an hour
SHELL := /bin/bash
.DEFAULT_GOAL := help

# The newest Python that works and that all dependencies support: XLA's CPU convolutions are much
# faster from jax 0.12 on, which needs Python 3.12. The comparison with PyTorch runs on the oldest, so
# that it is tested too, together with what may depend on the versions of Python and jax.
PYTHON ?= $(shell sh .ci/find-python 3.13 3.12 3.11)
PARITY_PYTHON ?= $(shell sh .ci/find-python 3.11 3.12 3.13)
VENV ?= .venv
PARITY_VENV ?= .venv-parity
DEMO_RUN ?= runs/demo
# Python compiles what it imports; all that pip installs would take as long as installing it.
PIP = pip install --quiet --no-compile
PYTEST = -m pytest -n $(shell nproc 2>/dev/null || echo 2) --dist worksteal

# The tests start a hundred Pythons. Where none keeps what it compiles, each compiles JAX anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test check lint suite parity parity-all format clean

help:
	@sed -n 's/^# //p' Makefile | head -4

$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; install one or give PYTHON=…"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m $(PIP) --editable '.[dev]'
	@touch $@

$(PARITY_VENV)/installed: pyproject.toml
	$(PARITY_PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/python -m $(PIP) --editable '.[dev,parity]'
	$(PARITY_VENV)/bin/python -m $(PIP) --no-deps torchvision==0.28.0 yolox-datamint==0.3.1
	@touch $@

install: $(VENV)/installed

demo: install
	@test ! -e $(DEMO_RUN) || { echo "$(DEMO_RUN) exists: delete it or give DEMO_RUN=…"; exit 1; }
	$(VENV)/bin/python experiments/fashion_mnist.py --run-dir $(DEMO_RUN)
	$(VENV)/bin/python -m jaxvision predict $(DEMO_RUN) $(DEMO_RUN)/samples
	@echo "open $(DEMO_RUN)/report.html in a browser to see the curves and the mistakes"

# Both environments at once: pip works on one core.
test:
	@$(MAKE) --no-print-directory --jobs=2 install $(PARITY_VENV)/installed
	@$(MAKE) --no-print-directory lint suite parity

check: lint suite

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Cores that run tests have none left for compiling in parallel.
XLA = --xla_cpu_parallel_codegen_split_count=1

# Tests compile for longer than they compute; only the larger networks need LLVM's first level.
LEVEL = --xla_backend_optimization_level

suite: install
	XLA_FLAGS="$(XLA) $(LEVEL)=0" $(VENV)/bin/python $(PYTEST) -m "not parity"

# As users run the code, without the types' checks, which the suite has.
COMPARE = $(PARITY_VENV)/bin/python $(PYTEST) --jaxtyping-packages=

parity: $(PARITY_VENV)/installed
	XLA_FLAGS="$(XLA) $(LEVEL)=0" $(COMPARE) -m "(parity or core) and not slow"

parity-all: $(PARITY_VENV)/installed
	XLA_FLAGS="$(XLA) $(LEVEL)=1" $(COMPARE) -m "parity"

format: install
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(PARITY_VENV) build *.egg-info .pytest_cache .ruff_cache
