# Both targets set up .venv by themselves and do nothing twice.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= auto

.PHONY: suite test lint bench clean

suite: $(READY)
	$(BIN)/pytest suite -k resnet20-digits -n $(WORKERS)

test: $(READY) lint
	$(BIN)/pytest tests -n $(WORKERS) -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/collection.py
	$(BIN)/python benchmarks/steps.py resnet20-digits

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) .pruneaudit reports/latest
