PYTHON ?= python3.11
BIN := .venv/bin
.DEFAULT_GOAL := help
# three files of tests at a time on two cores: at times a test waits for a server
ABREAST = -n 3 --dist loadfile --no-loadscope-reorder
.PHONY: help install run test check lint audit docs bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: .venv/installed ## Make .venv and install what is needed to use it

run: .venv/installed ## Install, run the pipeline on a real model, and ask it something
	$(BIN)/vinoflow export-and-validate configs/smollm2-135m-instruct.yaml
	$(BIN)/vinoflow ask "What is the capital of France?" --model smollm2-135m-instruct@latest

test: lint docs audit ## Lint, types, import rules and all tests
	$(BIN)/pytest -m "not bench" $(ABREAST)

check: lint docs audit ## The same with the fast tests only: what a commit should pass
	$(BIN)/pytest -m "not bench and not slow" $(ABREAST)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/bandit -q -c pyproject.toml -r flows tasks .ci

audit: .venv/installed-dev ## Known vulnerabilities of what is installed, where the service that knows them answers
	$(BIN)/python .ci/audit.py

docs: .venv/installed-dev ## Build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed-dev ## Measure against the bare libraries; prints tables of ratios
	$(BIN)/pytest -m bench -s tests/benchmarks

clean: ## Remove the environment and what tools left; mlruns/ stays
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null && $(PYTHON) -c "import ensurepip" 2>/dev/null || .ci/system-packages
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	@touch $@
