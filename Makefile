# Two commands do everything on a bare machine with Python >= 3.11: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements
DEV_STAMP := $(VENV)/.requirements-dev
MODEL ?= all
export OMP_NUM_THREADS ?= 2

.PHONY: help setup setup-dev demo test test-slow lint format bench reliability clean

help:
	@echo "make demo [MODEL=fault_seg]  install, train, infer, evaluate, write results/demo/index.html"
	@echo "make test                    install and run the test suite"
	@echo "make setup                   only install, into $(VENV)"
	@echo "make test-slow | reliability | lint | format | bench | clean"

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $$($(PYTHON) --version) found, Python >= 3.11 needed; run: make PYTHON=python3.11"; exit 2; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(DEV_STAMP): requirements-dev.txt $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	@touch $@

setup: $(STAMP)

setup-dev: $(DEV_STAMP)

demo: $(STAMP)
	$(BIN)/python scripts/demo.py --model $(MODEL)

test: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow and not reliability"

test-slow: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow"

reliability: $(DEV_STAMP)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m pytest -p tests.reliability_table -m "not slow" \
		--reliability_table benchmarks/results

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python scripts/bench.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .cache results/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
