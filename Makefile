# Two commands: `make demo` and `make test`. `make setup` alone makes .venv and does nothing when it is up to date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A process a core; one that is done takes tests that the others have left.
CORES ?= -n auto --maxprocesses 8 --dist worksteal

.PHONY: setup demo test test-all benchmark lint format clean

setup: $(INSTALLED)

$(INSTALLED): requirements.txt requirements-dev.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "letKD needs Python 3.10 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt -c constraints.txt
	@touch $@

demo: setup
	$(BIN)/python demo.py

test: setup
	$(BIN)/python -m pytest $(CORES)

test-all: setup
	$(BIN)/python -m pytest $(CORES) -m ''

benchmark: setup
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.offline

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
