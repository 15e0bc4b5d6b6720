# A fresh machine needs Python 3.11, make and gcc; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
TESTS ?= tests
# The networks of nnU-Net ask for an older timm than they need: without their dependencies, tests see the newest timm.
NNUNET := "dynamic-network-architectures==0.4.4" "einops>=0.8"
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo demo-volumes quick test lint format docs wheel floor zoo clean help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*##/\1\t/'

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(NNUNET)
	touch $@

demo: $(VENV)/installed  ## pretrain on built-in photographs: minutes on a CPU
	$(BIN)/sparkmim demo

demo-volumes: $(VENV)/installed  ## pretrain on phantoms and a real volume: minutes on a CPU
	$(BIN)/python examples/volumes.py

quick: $(VENV)/installed  ## the tests that are not marked slow, without GPU and integration tests: below three minutes
	$(PYTEST) -m "not slow and not gpu" --ignore tests/integration $(TESTS)

test: $(VENV)/installed  ## all tests
	$(PYTEST) $(TESTS)

lint: $(VENV)/installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed  ## mend style in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	touch $@

docs: $(VENV)/docs  ## build the documentation into site/ and fail on any warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/installed  ## build the wheel into dist/, install it into an empty environment and run it
	.ci/wheel $(BIN)/python

# The oldest releases that pyproject.toml admits, in a virtual environment of their own.
floor:  ## all tests, against the oldest supported torch, torchvision and timm
	test -x .venv-floor/bin/python || $(PYTHON) -m venv .venv-floor
	.venv-floor/bin/python -m pip install --quiet --disable-pip-version-check \
		"torch==2.6.0" "torchvision==0.21.0" "timm==1.0.31" --editable ".[dev]"
	OMP_NUM_THREADS=1 .venv-floor/bin/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

# Other packages pin what the project needs newer, so theirs are installed without dependencies, all of them by version.
.venv-zoo/installed: benchmarks/zoo-requirements.txt pyproject.toml
	test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/zoo-requirements.txt
	touch $@

zoo: .venv-zoo/installed  ## check networks of other packages, and write docs/results/zoo.md; resumable
	.venv-zoo/bin/python benchmarks/zoo.py --output docs/results/zoo.md --jobs $(WORKERS) $(ZOO)

clean:  ## remove what the other targets make
	rm -rf $(VENV) .venv-floor .venv-zoo .pytest_cache .mypy_cache .ruff_cache build dist site
