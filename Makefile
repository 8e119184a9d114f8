# make demo, make test and make lint each do all the set-up themselves.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python run.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is written last: an interrupted installation is done again.
$(VENV)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed; none was found"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV); PyTorch is large, this takes some minutes"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Not runs/: results are not a build product.
clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
