# infnet-ray. `make help` lists the targets; each sets up what it needs on a bare machine.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
RUNS ?= runs
# The simulator needs no data. With INFNET_DATA (a folder or URI) the run uses the real logs there.
CONFIG ?= $(if $(INFNET_DATA),configs/infnet/kuairand27k_explicit.yaml,configs/infnet/side_by_side.yaml)
LLM_CONFIG ?= configs/layer_select/$(if $(INFNET_DATA),games_quick,side_by_side).yaml
# Vectors of items can be a feature of the scorer where both logs have the same items: in the simulator.
LLM_FEATURES ?= $(if $(INFNET_DATA),false,true)
RUN_NAME := $(basename $(notdir $(CONFIG)))
OUT ?= $(RUNS)/$(RUN_NAME)
LIVE := $(if $(findstring ://,$(OUT)),$(OUT),$(abspath $(OUT)))/live

# Tests start hundreds of processes, and each would compile our sources and theirs anew.
KEPT_BYTECODE := env -u PYTHONDONTWRITEBYTECODE

.PHONY: help install run serve test test-whole kube-test check bench format golden clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: .venv/installed ## .venv with everything (CPU or CUDA torch, as the index offers it)

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "infnet-ray needs Python 3.11 or newer, found $$($(PYTHON) --version); set PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (2 to 3 minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

run: install ## the whole mission: both recommenders trained, measured, compared and served over HTTP, one report (EXIT=1: end after the requests)
	@$(BIN)/python -m pipelines run side_by_side --root $(OUT) --serve $(if $(EXIT),--exit) config=$(CONFIG) llm_config=$(LLM_CONFIG) \
	  llm_features=$(LLM_FEATURES) live=$(LIVE)/scorer llm_live=$(LIVE)/recommender

serve: install ## both applications on one port, as `make run` left them live, until Ctrl-C
	@$(BIN)/python -m pipelines serve configs/serve/side_by_side.yaml \
	  --set applications.scorer.bundle=$(LIVE)/scorer --set applications.recommender.bundle=$(LIVE)/recommender

test: install ## all CPU tests but those of whole pipelines (set INFNET_DATA to include those on real data)
	@$(KEPT_BYTECODE) $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not whole and not kube"

test-whole: install ## whole pipelines from the log to answers over HTTP, here and on S3 (some 15 minutes)
	@$(KEPT_BYTECODE) $(BIN)/python -m pytest -m whole

kube-test: install ## the launcher on the cluster that KUBECONFIG names, with KubeRay and KUBE_TEST_IMAGE (skips without)
	@$(KEPT_BYTECODE) $(BIN)/python -m pytest -m kube tests/kube

check: install ## format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/pyright --warnings
	@$(BIN)/lint-imports

format: install ## rewrite the sources in the house format
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: install ## speed, as ratios against a peer or a floor in the same run (minutes, quiet machine)
	@for file in bench/*.py bench/layers/targets.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

golden: install ## rewrite golden files; commit them alone, saying why they changed
	@GOLDEN_WRITE=1 $(BIN)/python -m pytest -q -k golden

clean: ## remove run outputs (not the environment)
	@rm -rf $(RUNS)
