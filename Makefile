# Each of demo, test, lint, docs and bench does all the set-up itself.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.installed
	$(BIN)/python run.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Everything is read anew (-E): of a page that it has read before, Sphinx does not warn again.
docs: $(VENV)/.docs-installed
	$(BIN)/python -m sphinx --quiet -E -W --keep-going -d build/doctrees docs site
	@echo "site/index.html"

bench: $(VENV)/.installed
	@$(BIN)/python -m benchmarks.quick

# The stamp is written last: an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); PyTorch is large, this takes some minutes"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

$(VENV)/.docs-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# Not runs/: results are not a build product.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info build site docs/reference
