# make digits    train on the digits data set, no download        make help    the rest
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
CONFIG ?= configs/digits.py
WORKDIR ?= runs/digits

stamp := $(VENV)/.complete
extras := $(VENV)/.complete-extras
run := $(VENV)/bin/python -m
usable := import sys, pip; sys.exit(sys.version_info < (3, 11))
pytest := $(run) pytest -q -n $(WORKERS) --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help digits recall test test-all docs lint clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 12
	@echo 'variables: PYTHON=$(PYTHON) VENV=$(VENV) WORKERS=$(WORKERS) (test processes)'

digits: $(stamp)  ## train on digits into runs/digits; once finished, report that run
	@$(run) a2os2a_jax.main --config=$(CONFIG) --workdir=$(WORKDIR)

recall: $(stamp)  ## the task that needs attention, into runs/recall; some minutes
	@$(run) a2os2a_jax.main --config=configs/recall.py --workdir=runs/recall

test: lint  ## linter, formatter, then every test that is not slow
	@$(pytest)

test-all: lint $(extras)  ## the same with the slow tests: notebooks, site, commands of the docs
	@$(pytest) -m ''

docs: $(extras)  ## the documentation into build/docs; nothing is fetched but packages
	@$(run) sphinx -W --keep-going -q -b html docs build/docs
	@echo 'wrote build/docs; next: open build/docs/index.html'

lint: $(stamp)  ## ruff: rules and formatting, changing nothing
	@$(run) ruff check -q . && $(run) ruff format -q --check .

clean:  ## remove the environment, caches and build output; runs/ stays
	@if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi
	@rm -rf .cache .pytest_cache .ruff_cache build dist *.egg-info
	@find a2os2a_jax configs tests -name __pycache__ -prune -exec rm -rf {} + || true

# One environment for all targets. The stamp comes last, so an interrupted
# installation goes on next time; an environment that cannot run pip is made anew.
$(shell [ -x '$(VENV)/bin/python' ] || rm -f '$(stamp)')
$(stamp): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12, say" % sys.version_info[:2])'
	@if ! $(VENV)/bin/python -c '$(usable)' 2>/dev/null; then \
	  echo 'making $(VENV) (about a minute)'; \
	  if [ -f '$(VENV)/pyvenv.cfg' ]; then rm -rf '$(VENV)'; fi; \
	  $(PYTHON) -m venv '$(VENV)'; fi
	@$(run) pip install -qq --no-compile --disable-pip-version-check -r requirements.txt -e '.[test]'
	@touch $@

# What only the documentation and the notebooks need.
$(extras): $(stamp)
	@$(run) pip install -qq --no-compile --disable-pip-version-check -e '.[test,docs,notebooks]'
	@touch $@
