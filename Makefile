# `make` alone lists what it can do. Everything runs in .venv, which the first target that needs it builds.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first Python that is new enough; `make PYTHON=/path/to/python …` overrides.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$python && break; done)
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
ARGS ?=

# Scripts in a venv hold its absolute path, so the path is part of the stamp: a copied checkout builds its own.
LOCKED := $(VENV)/.locked-$(shell pwd -P | cksum | cut -d' ' -f1)
INSTALLED := $(VENV)/.installed
NODE_CLIENTS := tests/e2e/clients/node/node_modules/.package-lock.json

PROMTOOL := .cache/bin/promtool

.PHONY: help install check format test coverage demo dev docs screenshots reference openapi bench chaos hosts node promtool chromium build publish lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Build .venv: the locked dependencies, each checked against its hash, and the headrace command

$(LOCKED): requirements-dev.lock requirements-build.lock
	@test -n "$(PYTHON)" || { echo "Headrace needs Python 3.11 or newer. Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing the locked dependencies into .venv …"
	@test -e "$@" || "$(PYTHON)" -m venv --clear "$(VENV)"
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		-r requirements-dev.lock -r requirements-build.lock
	@touch "$@"

$(INSTALLED): $(LOCKED) pyproject.toml
	@"$(BIN)/python" -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch "$@"

check: install ## Lint, format check, strict types, import contracts, words
	"$(BIN)/ruff" check
	"$(BIN)/ruff" format --check
	"$(BIN)/mypy"
	"$(BIN)/lint-imports"
	"$(BIN)/python" .ci/words.py

format: install ## Format, and fix what ruff can fix
	"$(BIN)/ruff" format
	"$(BIN)/ruff" check --fix

# Tests wait much of their time: three processes keep two cores busy. A test process that dies ends the run, because
# xdist may wait without end for the files of one that it has replaced.
test: install ## Run the whole suite on stores of its own; ARGS="-k name" passes options to pytest
	"$(BIN)/python" -m pytest --numprocesses 3 --max-worker-restart 0 --dist loadfile $(ARGS)

# The registry's address is the machine's own, so the lock of these names none.
node: $(NODE_CLIENTS) ## Install the Node clients that tests run, where there is npm; without them those tests are skipped

$(NODE_CLIENTS): tests/e2e/clients/node/package-lock.json
	@if command -v npm >/dev/null; then \
		npm ci --silent --no-audit --no-fund --ignore-scripts --prefix "$(<D)" && touch "$@"; \
	else echo "This machine has no npm: the tests of the Node clients are skipped"; fi

promtool: $(PROMTOOL) ## Fetch promtool, which tests the alert rules, where there is apt; without it those tests are skipped

# Out of Debian's package, whose daemon is not installed. A machine without lists of packages fetches them first.
$(PROMTOOL):
	@if ! command -v apt-get >/dev/null; then echo "This machine has no apt: the tests of the alert rules are skipped"; exit; fi; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; cd "$$folder"; \
	apt-get -qq download prometheus 2>/dev/null || { apt-get -qq update; apt-get -qq download prometheus; }; \
	dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool; \
	install -D usr/bin/promtool "$(CURDIR)/$@"

chromium: ## Install Chromium, in which the console is tested, where there is apt; without it those tests are skipped
	@if command -v chromium >/dev/null; then exit; fi; \
	if ! command -v apt-get >/dev/null; then echo "This machine has no apt: the console is not tested in a browser"; exit; fi; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get -qq install --yes --no-install-recommends chromium >/dev/null 2>&1 \
		|| { apt-get -qq update; apt-get -qq install --yes --no-install-recommends chromium >/dev/null; }

coverage: install ## Tell which lines the unit and integration tests run; ARGS=tests/e2e measures others
	@rm -f .cache/coverage*
	@mkdir -p .cache
	"$(BIN)/coverage" run -m pytest --numprocesses 3 --dist loadfile -q $(or $(ARGS),tests/unit tests/integration)
	@"$(BIN)/coverage" combine --quiet
	@"$(BIN)/coverage" report

demo: install ## Start everything, stream a completion, run a few jobs, show results and usage
	@exec "$(BIN)/headrace" demo $(ARGS)

dev: install ## Run the whole service on this machine until Ctrl-C
	@exec "$(BIN)/headrace" dev $(ARGS)

docs: install ## Build the docs site into build/site, strictly and offline
	@"$(BIN)/zensical" build --clean --strict
	@echo 'To read it: .venv/bin/python -m http.server --bind 127.0.0.1 --directory build/site'

screenshots: install ## Take the pictures of the console in docs/images, on a service of its own; needs Chromium
	@"$(BIN)/python" docs/screenshots.py

reference: install ## Write the pages of docs/reference that are made from code
	@"$(BIN)/python" docs/generate.py

openapi: reference ## Write docs/reference/openapi.json, whose diff shows a change of the HTTP API to its reviewer

bench: install ## Measure against LiteLLM's proxy, in the same run; ARGS="--against REVISION" beside another commit, --shapes what others publish
	@exec "$(BIN)/python" -m bench $(ARGS)

chaos: install ## Kill, stall and cut everything under load, then count what was lost; ARGS="--minutes 10 --seed 7"
	@"$(BIN)/python" -m tests.faults.chaos $(ARGS)

hosts: install ## Break a service of several hosts, which are network namespaces: root and `ip netns`; else it is skipped
	@exec "$(BIN)/python" -m tests.hosts $(ARGS)

build: install ## Build the wheel and the sdist into dist/
	@rm -rf dist
	"$(BIN)/hatchling" build

publish: install ## Send what `make build` made to the package index; the workflow of a release runs it
	"$(BIN)/python" -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	"$(BIN)/uv" publish --trusted-publishing always

COMPILE = "$(BIN)/uv" pip compile --quiet --universal --generate-hashes --no-header $(ARGS)
lock: install ## Resolve the dependencies anew and write the locks; ARGS=--upgrade takes the newest
	"$(BIN)/python" -m pip install -qq --disable-pip-version-check uv==$(UV_VERSION)
	$(COMPILE) pyproject.toml --extra otel --output-file requirements.lock
	$(COMPILE) pyproject.toml --extra dev --constraints requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group build --constraints requirements-dev.lock --output-file requirements-build.lock

clean: ## Remove .venv and everything else that can be made again
	rm -rf .venv tests/e2e/clients/node/node_modules .bench .cache .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
