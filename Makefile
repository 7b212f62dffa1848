# TAP Workbench. Every target makes what it needs first; `make` alone lists them.
#
#   make app                     the dashboard on http://localhost:5006
#   make app ARGS="--port 5010"  the same, elsewhere
#   make test ARGS="-k budget"   part of the tests
#   make PYTHON=python3.12 app   a Python of your choice (3.11 to 3.14)

VENV     ?= .venv
BIN      := $(VENV)/bin
PYTHON   ?=
ARGS     ?=
NOTEBOOK ?= 00_first_look
MODEL    ?= smollm2-135m
# One process per core, but no more than memory is likely to hold: each takes up to 2 GB. WORKERS=0 for one alone, to debug.
WORKERS  ?= auto

# pip keeps its cache between checkouts; only errors are worth a line.
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.PHONY: help app test check lab report bench bench-gpu browser format clean

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

app: $(VENV)/.installed-app ## The dashboard with the embedded model loaded: http://localhost:5006
	@$(BIN)/tapwb app $(ARGS)

test: $(VENV)/.installed-dev browser ## The test suite
	@$(BIN)/pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev ## Lint, types, layers, spelling
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

lab: $(VENV)/.installed-notebooks ## JupyterLab on the notebooks
	@$(BIN)/tapwb lab $(ARGS)

report: $(VENV)/.installed-notebooks ## An offline HTML report of NOTEBOOK (00_first_look)
	@$(BIN)/tapwb report $(NOTEBOOK) --to html --out reports $(ARGS)

bench: $(VENV)/.installed-notebooks build/pydoc_topics.txt ## Speed, memory and quality beside other programs, written to build/
	@$(BIN)/tapwb bench decode --model $(MODEL) --peers all --text-file build/pydoc_topics.txt --out build/decode.jsonl $(ARGS)

# Nothing is installed: an image with torch, triton and transformers is enough, with a network or without.
bench-gpu: ## Correctness, speed, memory and energy on this machine's CUDA card, under ten minutes
	@$(or $(PYTHON),$(wildcard $(BIN)/python),python3) kernels/bench/gpu_suite.py $(ARGS)

browser: $(VENV)/.installed-dev ## A Chromium for PDF reports and browser tests, where none is found
	@if $(BIN)/python -m tapwb.views.report.browser; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=""; elif sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root="none"; fi; \
	if [ "$$as_root" != none ] && command -v apt-get >/dev/null 2>&1; then \
	  echo "Installing Chromium from the system's packages"; \
	  { $$as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $$as_root apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
	fi; \
	$(BIN)/python -m tapwb.views.report.browser || \
	echo "No Chromium or Chrome: browser tests and PDF reports are skipped. Install one, or set TAPWB_BROWSER to its path."

format: $(VENV)/.installed-dev ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

clean: ## Remove all that make made here (models stay in the user's cache)
	@rm -rf $(VENV) build dist reports .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the targets stand on ---

# The first Python that is new enough, not too new for torch's wheels, and able to make an environment.
$(VENV)/.created:
	@for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14 python; do \
	  if command -v "$$candidate" >/dev/null 2>&1 && "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' >/dev/null 2>&1; then \
	    test -x $(BIN)/python || "$$candidate" -m venv $(VENV); \
	    touch $@; exit 0; \
	  fi; \
	done; \
	echo "No Python 3.11 to 3.14 with the venv module was found. Install one (Debian, Ubuntu: apt install python3 python3-venv), or say which: make PYTHON=/path/to/python" >&2; \
	exit 1

# One stamp for each set of packages; a changed pyproject.toml installs again.
$(VENV)/.installed-%: pyproject.toml | $(VENV)/.created
	@echo "Installing the packages for '$*' into $(VENV) (some minutes the first time)"
	@$(PIP) --editable ".[$*]"
	@touch $@

# A text that comes with Python: public, the same everywhere, no download.
build/pydoc_topics.txt: | $(VENV)/.created
	@mkdir -p $(@D)
	@$(BIN)/python -c "from pydoc_data.topics import topics; print('\n\n'.join(topics[name] for name in sorted(topics)))" > $@
