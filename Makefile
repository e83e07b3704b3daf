# Few verbs: `make demo`, `make test`, `make test-all`, `make test-gpu`, `make check`, `make docs`.
# All set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# processes of the fast suite; each has a Ray cluster of its own
JOBS ?= 2
FAST_SUITE := $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

.PHONY: demo test test-all test-gpu gpu-bundle check docs setup clean

demo: setup ## the main job on the embedded pool
	$(BIN)/python -m orchestrator run

test: setup ## the fast suite
	$(FAST_SUITE)

test-all: setup ## the fast suite with more examples of each property, then the slow suite
	HYPOTHESIS_PROFILE=thorough $(FAST_SUITE)
	$(BIN)/python -m pytest -q -m slow

test-gpu: setup ## proof on a GPU, in two calls of five and four minutes; tables in runs/gpu
	$(BIN)/python -m tests.gpu.without_ray --out runs/gpu/without_ray; first=$$?; \
	$(BIN)/python -m tests.gpu.with_ray --out runs/gpu/with_ray && exit $$first

gpu-bundle: setup ## the same for a bare machine with a GPU: an archive for each call
	$(BIN)/python -m tests.gpu.bundle --call 1 --out runs/gpu/bundle-1
	$(BIN)/python -m tests.gpu.bundle --call 2 --out runs/gpu/bundle-2

check: setup ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy orchestrator tests/gpu

docs: setup ## the site, in docs/_build/html; warnings are errors
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python .ci/install.py
	touch $@

clean: ## generated files; the environment stays
	rm -rf runs build dist docs/_build .pytest_cache .mypy_cache .ruff_cache
