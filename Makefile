# A fresh machine needs Python 3.11, make and gcc; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
TESTS ?= tests

.PHONY: demo test lint floor clean

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: $(VENV)/installed  ## pretrain on built-in photographs: minutes on a CPU
	$(BIN)/sparkmim demo

test: $(VENV)/installed  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The oldest releases that pyproject.toml admits, in a virtual environment of their own.
floor:  ## the tests, against the oldest supported torch, torchvision and timm
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check \
		"torch==2.6.0" "torchvision==0.21.0" "timm==1.0.31" --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

clean:
	rm -rf $(VENV) .venv-floor .pytest_cache .mypy_cache .ruff_cache build
