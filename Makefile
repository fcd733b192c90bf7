# make run      environment, ten peers on handwritten digits, live table, report
# make test     environment with the developers' tools, all tests that need no engine
# make check    what .ci/run checks besides the tests: style, types, imports
# make docs     the documentation as a site
# make venv     the environment with the developers' tools, and nothing else

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
ROUNDS ?= 20

.PHONY: run test test-engines check docs venv clean
.DEFAULT_GOAL := run

run: $(VENV)/.ready
	$(BIN)/dslth run --topology topologies/ring.yaml --rounds $(ROUNDS)

test: venv
	$(BIN)/python -m pytest -m "not engine" -n 2

# Containers, namespaces, Swarm, Slurm, Ray: as root, on Debian; what is missing is installed, what is not up is started.
test-engines: venv
	tests/engines/install
	$(BIN)/python -m pip install --quiet --editable ".[ray]"
	$(BIN)/python -m pytest -m engine

check: venv docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

# The site, into build/site; whatever mkdocs would warn of is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

venv: $(VENV)/.ready-dev

# Torch first and pinned: with it in place nothing else pulls another build of it.
$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("dslth needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[report]"
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
