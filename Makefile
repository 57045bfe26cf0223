# Two commands from a bare machine: `make demo` and `make test`. Each sets `.venv` up on its first run.
# make PYTHON=python3.12 test   sets up with another Python (3.10 to 3.13)
# make test ARGS="-k matching"  hands ARGS to the command behind demo, evidence, test, test-fast, soak, coverage, mutation or bench
# make DEVICE=cuda evidence     trains on a GPU

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done
JOBS ?= 2
DEVICE ?= cpu
ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Two test workers with one thread each are faster on two cores than two workers that compete for both.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --timeout 900

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo evidence test test-fast lint format types docs check soak fuzz audit coverage mutation bench matrix clean clean-all same-python

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## build .venv with pinned requirements, Detectron2 and this package (once)

demo: $(STAMP) ## train and evaluate on generated scenes without labels, then draw pictures
	@$(PY) tools/run_demo.py $(ARGS)

evidence: $(STAMP) ## train the evidence recipe and its variants, write docs/evidence.md (under an hour on two cores)
	@$(PY) tools/run_evidence.py --device $(DEVICE) $(ARGS)

test: $(STAMP) ## run all tests
	@$(PYTEST) $(ARGS)

test-fast: $(STAMP) ## run the tests that take seconds
	@$(PYTEST) -m "not slow" $(ARGS)

lint: $(STAMP) ## check code style (ruff)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(STAMP) ## rewrite the code in the project's style (ruff)
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

types: $(STAMP) ## check types (mypy, strict in s2uniseg_d2/core)
	@$(PY) -m mypy

docs: $(STAMP) ## build the documentation site in build/docs (warnings are errors)
	@OMP_NUM_THREADS=1 $(PY) -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo "build/docs/index.html"

check: lint types docs test ## lint + types + docs + test, what continuous integration runs

soak: $(STAMP) ## inject 200 faults into the real commands, write output/faults (half an hour on two free cores)
	@OMP_NUM_THREADS=1 $(PY) -m tests.faults.soak --injections 200 --seed 0 --jobs $(JOBS) --output output/faults $(ARGS)

coverage: $(STAMP) ## run all tests and ask for branch coverage: 95 % of core, 85 % of the package
	@$(PY) -m coverage erase
	@OMP_NUM_THREADS=1 $(PY) -m coverage run -m pytest -n $(JOBS) --timeout 1800 $(ARGS)
	@$(PY) -m coverage combine --quiet
	@$(PY) -m coverage report --fail-under=95 --include='s2uniseg_d2/core/*'
	@$(PY) -m coverage report --fail-under=85

mutation: $(STAMP) ## change core in 400 drawn places and ask the tests to notice 85 % (an hour on two cores)
	@$(PY) -W ignore tools/mutation_score.py --sample 400 --seed 0 --jobs $(JOBS) $(ARGS)

fuzz: $(STAMP) ## try 10,000 cases of bad input and print how they ended (make check tries 1,000)
	@OMP_NUM_THREADS=1 $(PY) -m tests.fuzz --cases 10000 --seed 1 $(ARGS)

audit: $(STAMP) ## compare the pinned requirements with known vulnerabilities (pip-audit, needs the network)
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet --constraint tools/audit-constraints.txt pip-audit
	@$(VENV)/audit/bin/python tools/audit_requirements.py $(ARGS)

bench: $(STAMP) ## run the benchmarks
	@set -e; for file in tests/benchmarks/bm_*.py; do echo "== $$file"; $(PY) $$file $(ARGS); done

matrix: ## run the tests with the oldest and newest versions on each Python (hours; ARGS="--list" names the cells)
	@$(PYTHON) tools/compatibility_matrix.py $(ARGS)

clean: ## remove caches and build files; output/ and .venv stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	@find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print | xargs rm -rf

clean-all: clean ## remove .venv and the downloaded Detectron2 wheel too
	@rm -rf $(VENV) .cache

# The stamp comes last, so that an interrupted set-up goes on at the next call.
$(STAMP): requirements.txt setup.py tools/install_detectron2.py | same-python
	@version=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || { \
	  echo "make: '$(PYTHON)' does not run: install Python 3.10 to 3.13, or name one as in 'make PYTHON=python3.12 setup'." >&2; exit 1; }; \
	case $$version in 3.10|3.11|3.12|3.13) ;; *) \
	  echo "make: '$(PYTHON)' is Python $$version, 3.10 to 3.13 is needed: name one as in 'make PYTHON=python3.12 setup'." >&2; exit 1;; esac; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' has no venv module: install it, on Debian and Ubuntu with 'apt-get install python$$version-venv'." >&2; exit 1; }; \
	echo "[1/4] Virtual environment in $(VENV) (Python $$version)"; \
	$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "[2/4] Pinned requirements from the package registry (PyTorch is large: some minutes, 6 GB of disk)"
	@$(PY) -m pip install --use-pep517 -r requirements.txt
	@echo "[3/4] Detectron2"
	@$(PY) tools/install_detectron2.py
	@echo "[4/4] This package"
	@$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

# A Python that was asked for by name must be the one that runs.
same-python:
ifneq ($(filter command environment,$(origin PYTHON)),)
	@if [ -x $(PY) ]; then \
	  code='import sys; print("%d.%d" % sys.version_info[:2])'; \
	  have=$$($(PY) -c "$$code"); want=$$($(PYTHON) -c "$$code" 2>/dev/null || echo '$(PYTHON)'); \
	  [ "$$have" = "$$want" ] || { echo "make: $(VENV) was set up with Python $$have, not $$want: run 'make clean-all' first." >&2; exit 1; }; \
	fi
endif
