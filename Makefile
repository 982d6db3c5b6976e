# The targets are described in docs/testing.md; `make` alone lists them.
#
#   PYTHON   the interpreter to make .venv with (3.11 or later); default: the first such one on the PATH
#   ARGS     passed on: make demo ARGS=--once, make test ARGS="-k snapshot"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
UV ?= $(firstword $(wildcard $(BIN)/uv) uv)
GLANCE_VENV := .venv-glance

IS_RECENT := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c '$(IS_RECENT)' 2>/dev/null && echo $$p && break; done)
VERSION := $(if $(PYTHON),$(shell $(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'))
INSTALLED := $(VENV)/.installed-$(VERSION)

.PHONY: help setup lock demo test lint format bench test-browser test-clients test-glance test-matrix test-packets test-rabbitmq clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 16

setup: $(INSTALLED) ## make .venv from requirements.lock (once, and again when that changes)

$(INSTALLED): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c '$(IS_RECENT)' \
		|| { echo "vmops needs Python 3.11 or later: make PYTHON=/path/to/python3.13" >&2; exit 2; }
	@[ -x $(BIN)/python ] && [ "$$($(BIN)/python -c 'import platform; print(platform.python_version())')" = $(VERSION) ] \
		|| $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "Python's venv module is missing: apt-get install python3-venv, or choose another PYTHON" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.installed-*; touch $@

lock: ## choose versions again within pyproject.toml's bounds (needs uv; UPGRADE=1 takes the newest)
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links $(if $(UPGRADE),--upgrade) --group dev --extra openstack pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--no-emit-find-links --constraint requirements.lock --extra openstack pyproject.toml -o requirements-runtime.lock

demo: setup ## a snapshot from a simulated pool, with everything real but the pool (ARGS=--once ends by itself)
	@$(BIN)/vmops demo $(ARGS)

test: setup ## the tests that need nothing but this machine
	@$(BIN)/python -m pytest -n 3 --dist worksteal $(ARGS)

lint: setup ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## let ruff format and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark, one after the other (docs/testing.md)
	@for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python $$bench $(ARGS); done

test-browser: setup ## Flower in headless Chromium
	@$(BIN)/python -m pytest -m browser $(ARGS)

test-clients: setup ## XenAPI clients that are not ours, unmodified, against the simulator (needs npm)
	@$(BIN)/python -m pytest -m clients $(ARGS)

test-glance: setup $(GLANCE_VENV)/.installed ## the image store's contract against a real Glance
	@VMOPS_TEST_GLANCE_VENV=$(CURDIR)/$(GLANCE_VENV) $(BIN)/python -m pytest -m glance $(ARGS)

$(GLANCE_VENV)/.installed: Makefile
	$(PYTHON) -m venv --clear $(GLANCE_VENV)
	$(GLANCE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check 'glance>=33,<34' 'gunicorn>=23'
	@touch $@

test-matrix: setup ## every operation killed and cut off, before and after every call (an hour)
	@$(BIN)/python -m pytest -n 3 --dist worksteal -m matrix $(ARGS)

test-packets: setup ## real packets (root; Debian: openvswitch-switch, iptables, ipset, ebtables, ethtool)
	@$(BIN)/python -m pytest -m packets $(ARGS)

test-rabbitmq: setup ## the engine on RabbitMQ (Debian: apt-get install rabbitmq-server)
	@$(BIN)/python -m pytest -m rabbitmq $(ARGS)

clean: ## remove what the other targets made
	rm -rf $(VENV) $(GLANCE_VENV) .clients build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
