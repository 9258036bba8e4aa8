# Two commands do all the set-up: `make demo` and `make test`. They need Python ≥ 3.11.4, make and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-all real lint gpu docs docs-serve clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "icpctl needs Python 3.11.4 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed ## baseline against AdEMAMix-ICP on digits, a few minutes on a CPU
	$(BIN)/icpctl ablate resnet20 digits --epochs 12 --grid optimizer=ademamix --output results/demo

test: $(VENV)/installed-test lint ## lint, types and tests, some minutes
	$(BIN)/python -m pytest

test-all: $(VENV)/installed-test lint ## the same and the tests marked slow, which are more of the same
	$(BIN)/python -m pytest -m 'slow or not slow'

real: $(VENV)/installed-test ## the tests on real CIFAR-100, some minutes; needs ICPCTL_DATA_DIR
	$(BIN)/python -m pytest -n 0 tests/real

lint: $(VENV)/installed-test ## ruff, mypy and the import contract alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

gpu: $(VENV)/installed ## check and measure all on the GPU of this machine, some minutes; writes benchmarks/results/gpu-*.md and .json
	$(BIN)/python benchmarks/gpu.py

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

docs: $(VENV)/installed-docs ## write the generated pages, and build the documentation into site/; every link is checked
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/findings.py
	$(BIN)/python docs/method_picture.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: $(VENV)/installed-docs ## show the documentation in a browser, while you edit it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

clean: ## remove the virtual environment and caches; results/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .pytest_cache .hypothesis site *.egg-info
