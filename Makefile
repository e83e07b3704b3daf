# Few verbs: `make demo`, `make test`, `make test-all`, `make check`, `make docs`. All set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check docs setup clean

demo: setup ## the main job on the embedded pool
	$(BIN)/python -m orchestrator run

test: setup ## the fast suite
	$(BIN)/python -m pytest -q

test-all: setup ## the fast and the slow suite
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -q -m "slow or not slow"

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy orchestrator

docs: setup ## the site, in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install.py
	touch $@

clean: ## generated files; the environment stays
	rm -rf runs build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
