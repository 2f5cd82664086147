# Everything is set up in .venv; `make help` says what there is.
#   PYTHON=python3.12              the interpreter for .venv (else the first of 3.11 to 3.13 that is found)
#   GPU=auto|cuda|vulkan|metal|none  for what llama.cpp is built (else as last time; the first time auto)
#   ARGS="-k lease"                more arguments for pytest, the benchmarks or the demonstration

.DEFAULT_GOAL := help
.PHONY: help setup run test test-long lint bench lock clean

VENV_PYTHON := .venv/bin/python
PYTEST := $(VENV_PYTHON) -m pytest
SETUP = found=$$(sh packaging/setup/find_python.sh "$(PYTHON)") && "$$found" packaging/setup $(if $(PYTHON),--this-python)

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@awk '/^#   [A-Z]+=/ {sub(/^#   /, "  "); print}' Makefile

setup: ## put everything into .venv; seconds when nothing changed
	@$(SETUP) --gpu "$(GPU)"

run: setup ## show what Enclave does, with the model that comes with it
	@$(VENV_PYTHON) packaging/run_demo.py $(ARGS)

test: setup ## the tests, without the long ones
	@$(PYTEST) -n 2 $(ARGS)

test-long: setup ## the long tests: simulated faults by the thousand
	@$(PYTEST) -m long --timeout 900 $(ARGS) || { status=$$?; [ $$status -eq 5 ] || exit $$status; }

lint: setup ## ruff and the type checker
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/basedpyright

bench: setup ## the benchmarks that docs/benchmarks.md reports
	@$(VENV_PYTHON) -m benchmarks $(ARGS)

lock: ## pin the newest versions that fit in requirements.lock (needs the network)
	@$(SETUP) lock

clean: ## remove .venv and all caches of this folder
	@rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
