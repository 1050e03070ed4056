# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs; `make demo` is the place to begin.
.DEFAULT_GOAL := help
SHELL := /bin/sh
VENV ?= .venv
OLDEST_VENV ?= .venv-oldest
BIN := $(VENV)/bin
PIP_FLAGS := --disable-pip-version-check --quiet
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: help demo test check interop bench docs fuzz fuzz-door mutate clean
help:
	@echo "make demo     a phone registers, its keys are ferried, its data is managed over HTTPS (one command, no root)"
	@echo "make test     the fast tests, with branch coverage"
	@echo "make check    format, lint, types (3.11 and the newest Python), layers, the core's tests on the oldest Python"
	@echo "make interop  against Kamailio, strongSwan, PyHSS, freeDiameter, sipp, tshark, curl, nginx, Chromium, PJSIP if you have them; ends with a table of peers, versions, and what was skipped why"
	@echo "make bench    registrations/s and authenticated GET/s, a table and build/bench.json"
	@echo "make docs     the documentation, warnings are errors"
	@echo "make fuzz     hypothesis, deep profile: a million steps of the state machine that attacks a network"
	@echo "make fuzz-door  the HTTP door with atheris, guided by coverage, ten minutes; says what to install"
	@echo "make mutate   break the code on purpose, one thing at a time and in a copy, and see what notices (some minutes)"
	@echo "make clean    remove what make made"

demo: $(VENV)/.run
	@$(BIN)/keyferry demo $(ARGS)

test: $(VENV)/.test
	@rm -f .coverage .coverage.*
	$(BIN)/coverage run -m pytest -q -rs -n $(JOBS) --dist loadfile $(ARGS)
	@$(BIN)/coverage combine -q && $(BIN)/coverage report --include='src/keyferry/protocol/*,src/keyferry/roles/*' --skip-covered --fail-under=95

check: $(VENV)/.check $(OLDEST_VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy --python-version 3.11 src tests examples bench
	$(BIN)/mypy src tests examples bench
	$(BIN)/lint-imports
	$(BIN)/python tools/check_tree.py
	$(OLDEST_VENV)/bin/python -m pytest -q -n $(JOBS) tests/protocol

interop: $(VENV)/.interop
	@tools/install-peers
	$(BIN)/python -m pytest -q -m interop -rs tests $(ARGS)

bench: $(VENV)/.run
	@mkdir -p build
	$(BIN)/keyferry bench --output build/bench.json $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "build/docs/index.html"

fuzz: $(VENV)/.test
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q -n $(JOBS) tests/protocol tests/roles/test_invariants.py tests/fuzz $(ARGS)

fuzz-door: $(VENV)/.test
	$(BIN)/python tools/fuzz_door.py $(ARGS)

mutate: $(VENV)/.test
	$(BIN)/python tools/mutate.py --jobs $(JOBS) $(ARGS)

clean:
	rm -rf build .coverage .coverage.* .hypothesis .mypy_cache .ruff_cache .import_linter_cache .pytest_cache $(VENV) $(OLDEST_VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@python="$${PYTHON:-$$(tools/find-python)}" && echo "keyferry: making $(VENV) with $$python" && "$$python" -m venv $(VENV)

$(OLDEST_VENV)/bin/python:
	@python="$$(tools/find-python --oldest)" && echo "keyferry: making $(OLDEST_VENV) with $$python" && "$$python" -m venv $(OLDEST_VENV)

# One stamp a requirements file: an installed set is never asked about again, so every target works offline.
$(VENV)/.%: requirements/%.txt requirements/run.txt pyproject.toml | $(VENV)/bin/python
	@echo "keyferry: installing $< into $(VENV)"
	@$(BIN)/python -m pip install $(PIP_FLAGS) -r $<
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@

$(OLDEST_VENV)/.test: requirements/test.txt requirements/run.txt pyproject.toml | $(OLDEST_VENV)/bin/python
	@echo "keyferry: installing $< into $(OLDEST_VENV)"
	@$(OLDEST_VENV)/bin/python -m pip install $(PIP_FLAGS) -r $<
	@$(OLDEST_VENV)/bin/python -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@
