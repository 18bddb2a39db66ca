# make predict   sets up and predicts examples/ethanol.xyz with the shipped model
# make test      sets up the development tools too and runs the tests
# make docs      sets up the same and builds the documentation, strictly, into build/docs
# make lint types imports format format-check clean
#
# PYTHON is the interpreter that makes the virtual environment VENV; WORKERS the number of test processes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1); [ $$n -gt 4 ] && echo 4 || echo $$n)
PYTEST_ARGS ?=

BIN := $(VENV)/bin
SETTINGS := pyproject.toml constraints.txt
# Versions are pinned by the environment, so that pip also pins what builds the package.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: predict test docs lint types imports format format-check clean
.DELETE_ON_ERROR:

predict: $(VENV)/.installed
	$(BIN)/mlsemi predict examples/ethanol.xyz

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS)

docs: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m sphinx -E -W -n --keep-going -q -d build/doctrees docs build/docs
	@echo "written: build/docs/index.html"

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .

types: $(VENV)/.installed-dev
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/.installed-dev
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

format-check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .

# torch comes first and by its exact version: pip then takes the build at hand that fits the machine.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "mlsemi needs Python 3.11 or later, $(PYTHON) is older: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "setting up $(VENV): a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch $(SETTINGS)
	$(BIN)/python -m pip install -qq -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch $(SETTINGS)
	$(BIN)/python -m pip install -qq -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf .venv .venv-ci dist build .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
