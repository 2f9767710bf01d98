# Everything runs in .venv, made on first use from pyproject.toml and constraints.txt, and brought up to date when they change.
PYTHON = python3
ARGS =

BIN = .venv/bin
# What an install depends on.  The folder too: an editable install copied elsewhere would still import the old tree.
HASH := $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | cut -d' ' -f1)
RUN = .venv/.run-$(HASH)
DEV = .venv/.dev-$(HASH)

.DEFAULT_GOAL := help
.PHONY: help demo test check lint types floors docs wheel clean

help:
	@echo "make demo     the demonstration           make demo ARGS='--help'"
	@echo "make test     the tests and doctests      make test ARGS='-m slow'   ARGS='-n 0 -k threat'"
	@echo "make check    lint, types and floors      make lint   make types   make floors"
	@echo "make docs     the documentation site, in docs/_build/html"
	@echo "make wheel    source archive and wheel, in dist/"
	@echo "make clean    remove .venv, caches and built files (runs/ stays)"
	@echo "PYTHON=...    the Python (3.11 or newer) that .venv is made with; now: $(PYTHON)"

demo: $(RUN)
	@$(BIN)/nonsingular demo $(ARGS)

# A file is tested by one worker, so that what its tests share is made once.  A later -n, -m or --dist in ARGS wins.
test: $(DEV)
	@$(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile $(ARGS)

check: lint types floors

lint: $(DEV)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .

types: $(DEV)
	@$(BIN)/python -m pyright --project .

floors: $(DEV)
	@$(BIN)/lint-imports --no-logo

docs: $(DEV)
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

wheel: $(DEV)
	@$(BIN)/python -m build

clean:
	rm -rf .venv dist build docs/_build .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------- set-up
# $(call setup,WHAT,THEN): make .venv, install WHAT into it, do THEN; a mark every 3 seconds, the log only on failure.
define setup
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "nonsingular needs Python 3.11 or newer; PYTHON=$(PYTHON) is '$$($(PYTHON) --version 2>&1)'." >&2; \
	    echo "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "No virtual environment could be made (on Debian: apt install python3-venv)." >&2; exit 2; }
	@printf 'setting up (once, about a minute) '; \
	( while sleep 3 >/dev/null 2>&1; do printf .; done ) & marks=$$!; \
	trap 'kill $$marks 2>/dev/null' EXIT; trap 'exit 130' INT TERM; \
	{ $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '$(1)' && $(2); } >.venv/setup.log 2>&1 || { \
	    echo " failed:"; tail -n 20 .venv/setup.log; echo "The whole log: .venv/setup.log"; exit 2; }; \
	echo " done"
endef

$(RUN):
	$(call setup,.,true)
	@rm -f .venv/.run-* .venv/.dev-*; touch $@

# The development install contains the run-time one.  torchattacks asks for versions of years ago, and works without them.
$(DEV):
	$(call setup,.[dev],$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt torchattacks)
	@rm -f .venv/.run-* .venv/.dev-*; touch $(RUN) $@
