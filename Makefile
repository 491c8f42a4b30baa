# The verbs of the house. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
REQUIREMENTS ?= requirements/cpu.txt
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed

.PHONY: help setup up down status test test-fast test-fleet lint bench lab notebooks pins demo-models

help:  ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## */\1\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP)  ## build the environment in .venv from the pinned requirements

$(STAMP): $(REQUIREMENTS) requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) or sys.version_info >= (3, 14))' 2>/dev/null || { \
	  echo "needs Python 3.11 to 3.13, found: $$($(PYTHON) --version 2>&1); install one and run: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "this Python has no venv module; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	@echo "setup     building $(VENV) (the first time takes minutes: PyTorch and vLLM are large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setup     PyTorch"
	@# With pip, as it knows where this machine keeps its wheels; where that has no CPU build, PyTorch's own index has.
	@grep -q '+cpu' $(REQUIREMENTS) && { $(BIN)/python -c 'import torch' 2>/dev/null \
	  || $(BIN)/pip install -q --disable-pip-version-check "$$(grep -oE '^torch==[^ ]+' $(REQUIREMENTS))" 2>/dev/null \
	  || $(BIN)/pip install -q --disable-pip-version-check --index-url $(TORCH_INDEX) "$$(grep -oE '^torch==[^ ]+' $(REQUIREMENTS))"; } || true
	@$(BIN)/pip install -q --disable-pip-version-check uv
	@echo "setup     vLLM, Ray and the rest"
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -r $(REQUIREMENTS) -r requirements/dev.txt
	@$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	@# Ours too: where PYTHONDONTWRITEBYTECODE is set, each process would compile them again, for half a second.
	@$(BIN)/python -m compileall -q -j 0 $(VENV)/lib inhouse.py serving routing evals >/dev/null 2>&1 || true
	@touch $@
	@echo "setup     done"

up: setup  ## start Ray, the demo models, the router and MLflow's page; ends with a curl to paste
	@$(BIN)/inhouse up

down:  ## stop everything that `make up` started
	@if [ -x $(BIN)/inhouse ]; then $(BIN)/inhouse down; else echo "nothing is installed here"; fi

status: setup  ## show processes, models, readiness, memory and tokens per second
	@$(BIN)/inhouse status

test: setup lint  ## install what is needed and run all tests, real vLLM and Ray included
	@$(BIN)/python -m pytest

# INHOUSE_FLEET=folder keeps the machines for the next run; `python tests/fleet/lab.py folder` ends them.
test-fleet: setup  ## boot systemd machines on this one and walk through the day-two table (root, Debian; about an hour)
	@$(BIN)/python -m pytest -m fleet -s tests/fleet

test-fast: setup  ## the tests that start no engine
	@$(BIN)/python -m pytest -m "not slow"

lint: setup  ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: setup  ## measure the router beside its peers
	@$(BIN)/inhouse bench router

lab: setup  ## open JupyterLab on the notebooks (loopback, with a token)
	@$(BIN)/jupyter lab --ip 127.0.0.1 --notebook-dir notebooks --LabApp.app_settings_dir=notebooks/lab

notebooks: setup  ## run the notebooks against the running house and keep their outputs
	@$(BIN)/python -m evals.notebook

pins: $(STAMP)  ## compile requirements/*.txt anew from pyproject.toml
	@requirements/compile $(BIN)/uv

demo-models: setup  ## train the demo models again (about an hour)
	@for task in extraction reasoning chat; do $(BIN)/python -m evals.suites generate --task $$task --out build/demo/$$task.jsonl || exit 1; done
	@$(BIN)/python -m serving.demo.train --data build/demo
