# Few verbs: `make demo`, `make test`, `make test-all`, `make check`. All set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check setup clean

demo: setup ## the main job on the embedded pool
	$(BIN)/python -m orchestrator run

test: setup ## the fast suite
	$(BIN)/python -m pytest -q

test-all: setup ## the fast and the slow suite
	$(BIN)/python -m pytest -q -m "slow or not slow"

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy orchestrator

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install.py
	touch $@

clean: ## generated files; the environment stays
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache
