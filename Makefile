# `make demo` runs the main job, `make test` the tests; each installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# That run tests at a time.
PROCESSES ?= 2
READY := $(VENV)/.installed
READER := operator/hugetlb_quota/node/reader

.PHONY: help demo test unit chaos e2e-kind e2e-kind-vm e2e-vm lint format crds image lock clean preflight require require-vm

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: require $(READY) reader  ## show the main job, on a real API server, real cgroups and real huge pages
	@$(BIN)/python -m demo

test: preflight $(READY)  ## run every layer of tests; says how many ran at each and why any was skipped
	@$(BIN)/python -m pytest -q -n $(PROCESSES) --max-worker-restart=0 --durations=20 \
	    tests/unit tests/kernel tests/cluster tests/image $(ARGS)

unit: $(READY)  ## run the pure tests alone: no root, seconds
	@$(BIN)/python -m pytest -q tests/unit $(ARGS)

.PHONY: model
model: $(READY)  ## search the model of the protocol with spin, whole and without each guard; needs spin and gcc
	@$(BIN)/python -m pytest -q tests/model $(ARGS)

e2e-kind: $(READY)  ## make a cluster with kind and run tests/e2e on it; KEEP=1 leaves it
	@$(BIN)/python -m tests.kind $(ARGS)

e2e-kind-vm: require-vm $(READY)  ## the same where there is no Docker: it, kind and all images made here, in a virtual machine
	@$(BIN)/python -m tests.kind.vm $(ARGS)

e2e-vm: require-vm $(READY)  ## install the chart on a real node in a virtual machine, and run tests/e2e; KEEP=1 leaves it
	@$(BIN)/python -m tests.vm $(ARGS)

chaos: $(READY)  ## kill and pause everything while pods race, for SECONDS (600) and by SEED; nothing goes over a limit
	@CHAOS_SECONDS=$(or $(SECONDS),600) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -q -s tests/cluster/test_chaos.py $(ARGS)

.PHONY: bench
bench: $(READY) reader  ## measure everything, in about 20 minutes, and write docs/performance.md; ARGS="--only NAME", "--quick"
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(READY)  ## ruff, mypy (strict) and the import contracts
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(READY)  ## let ruff format and mend what it can
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

crds: $(READY)  ## make the CRDs from the models
	@$(BIN)/python -m hugetlb_quota.api.crd crds

.PHONY: version
version:  ## print the version, which pyproject.toml has
	@$(PYTHON) -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])'

.PHONY: reference
reference: $(READY)  ## make docs/reference.md from the models and the command lines
	@$(BIN)/python -m tools.reference

.PHONY: chart-docs
chart-docs: $(READY)  ## make the chart's README from its schema and defaults, and set its version
	@$(BIN)/python -m tools.chart_readme

image:  ## build the image; ENGINE, IMAGE, BASE, PLATFORM, CA as image/build.py tells
	@$(PYTHON) image/build.py

.PHONY: reader
reader:  ## build the reader of the kernel's charge list; needs clang, libbpf-dev and bpftool
	@$(MAKE) -s -C $(READER)

.PHONY: kernel-matrix
kernel-matrix: $(READY)  ## boot Debian's kernels in QEMU, and read their charge lists
	@$(BIN)/python -m pytest -q tests/kernel/test_charge_list_kernels.py $(ARGS)

lock: $(READY)  ## renew the lock files
	@$(BIN)/pip install -q --disable-pip-version-check uv
	@$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --python-version 3.11 \
	    -o requirements.lock pyproject.toml --extra operator
	@$(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header --python-version 3.11 \
	    -o requirements-dev.lock pyproject.toml --extra operator --group dev
	@echo hatchling | $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-header \
	    --python-version 3.11 -o image/requirements-build.lock -

clean:  ## remove the virtual environment and caches in the tree
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	@$(MAKE) -s -C $(READER) clean

preflight:  ## say what this machine lacks for the tests and the demo
	@$(PYTHON) tests/preflight.py

# Before anything is installed: `make demo`, `make e2e-vm` and `make e2e-kind-vm` list it first.
require-vm:
	@$(PYTHON) tests/preflight.py --require-vm

require:
	@$(PYTHON) tests/preflight.py --require

$(READY): requirements-dev.lock pyproject.toml
	@echo "Installing the locked dependencies into $(VENV) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; \
	this is %d.%d. Name another with make PYTHON=..." % sys.version_info[:2])'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@
