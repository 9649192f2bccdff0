# make demo: from nothing to a report.  make test: everything that must hold.  make papers: every experiment.  make help: the rest.
PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The exact pin, installed first, takes the CPU build of torch where one is found; a range pulls gigabytes of CUDA.
TORCH := torch==2.13.0

.PHONY: help setup demo test papers bench constraints clean

help:
	@echo "make setup        virtual environment in $(VENV) with the pinned versions (needs Python >= 3.11)"
	@echo "make demo         setup, train the text organism, fine-tune it, study it, print where the report is"
	@echo "make test         setup, then lint, types, import contract and tests (JOBS=$(JOBS) at a time)"
	@echo "make papers       setup, then every paper's experiment (hours) and one page of claims, figures and tables"
	@echo "make bench        setup, then timings beside other tools"
	@echo "make constraints  resolve the newest versions anew and write constraints.txt"
	@echo "make clean        remove $(VENV), caches and build products; results and trained organisms stay"

setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/interp run demo

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

papers: setup
	$(BIN)/python -m experiments.all

bench: setup
	$(BIN)/python -m benchmarks.run

constraints:
	$(PYTHON) -m venv --clear build/resolve
	build/resolve/bin/python -m pip install $(TORCH)
	build/resolve/bin/python -m pip install -e '.[dev]'
	{ sed '/^[^#]/d' constraints.txt; \
	  build/resolve/bin/python -m pip freeze --all --exclude pip --exclude interp | sed 's/+cpu$$//'; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	find interp probes experiments tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
