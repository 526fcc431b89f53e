# Everything a person or CI runs. Nothing here needs root. `make help` lists the targets.
#
# PYTHON      the interpreter that makes .venv (3.11 or newer)
# TORCH_ARGS  arguments of the `pip install` of PyTorch: by default pip takes the build its index offers (on Linux one
#             with CUDA, several GB); name an index of CPU wheels here to save them: TORCH_ARGS='--index-url URL'
# TEST_PROCESSES  tests that `make test-slow` (by the file) and `make test-faults` run side by side; 0 = one after the other
# FAST_PROCESSES  the same of `make test`, whose tests often wait: two of them leave a third of two cores idle

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_ARGS ?=
PYTEST_ARGS ?=
TEST_PROCESSES ?= 2
FAST_PROCESSES ?= 3
DEMO_ARGS ?=

BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)
SOURCES := pyproject.toml constraints.txt

# One thread a process: OpenMP threads that contend for few cores cost up to ten times. No model hub is ever asked.
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo setup dev test lint format types imports test-fast test-slow test-faults test-attacks test-fuzz test-gpu docs constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.setup ## train the example model through the whole service and show what it learned
	@$(BIN)/bgpo demo $(DEMO_ARGS)

test: lint types imports test-fast ## everything a change must pass, except the slow tests

lint: .venv/.dev ## ruff's rules and its format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.dev ## mypy, strict
	@$(BIN)/mypy

imports: .venv/.dev ## the import table of docs/architecture.md
	@$(BIN)/lint-imports --no-logo

test-fast: .venv/.dev ## the tests without the slow ones
	@$(BIN)/pytest -n $(FAST_PROCESSES) --dist loadfile -m 'not slow and not gpu and not faults and not attacks and not fuzz' $(PYTEST_ARGS)

# In the order of collection, which tests/conftest.py sees to.
test-slow: .venv/.dev ## whole-system tests: minutes each
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder \
	  -m 'slow and not gpu and not faults and not attacks and not fuzz' $(PYTEST_ARGS)

test-faults: .venv/.dev ## whole-system tests in which processes and servers die while jobs run
	@$(BIN)/pytest -n $(TEST_PROCESSES) --dist worksteal -m faults tests/faults $(PYTEST_ARGS)

test-attacks: .venv/.dev ## hostile code in the sandbox
	@$(BIN)/pytest -m attacks tests/attacks $(PYTEST_ARGS)

test-fuzz: .venv/.dev ## thousands of requests made from the OpenAPI description
	@$(BIN)/pytest -m fuzz tests/fuzz $(PYTEST_ARGS)

test-gpu: .venv/.dev ## tests that need a CUDA device
	@$(BIN)/pytest -m gpu $(PYTEST_ARGS)

format: .venv/.dev ## rewrite the code in ruff's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: .venv/.dev ## write docs/api-reference.md and tests/api/openapi.json from the code
	@$(BIN)/python docs/generate_api.py

setup: .venv/.setup ## make .venv with what running needs

dev: .venv/.dev ## ... and what developing needs

constraints: .venv/.dev ## write the versions installed in .venv to constraints.txt
	@{ echo '# Exact versions of everything in .venv, written by `make constraints`. pip reads them with -c.'; \
	   echo '# torch comes without its local version (+cpu, +cu130): any build of that release satisfies the pin.'; \
	   $(BIN)/pip freeze --exclude-editable | sed -E 's/^(torch==[^+]*)\+.*/\1/'; } > constraints.new
	@mv constraints.new constraints.txt
	@touch .venv/.setup .venv/.dev

clean: ## remove .venv, .venv-clients and every cache and build product
	rm -rf .venv .venv-clients build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second call instant; a change of the dependencies or of the pins installs again.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "bgpo needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | head -n 1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

.venv/.setup: $(SOURCES) | .venv/bin/pip
	@echo 'Installing into .venv (the first time takes some minutes)'
	@$(BIN)/pip install $(TORCH_ARGS) '$(TORCH)'
	@$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.setup
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev,gpu,s3]'
	@touch $@
