# Every target sets up what it needs; what is there already is not installed again.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-all lint bench bench-serving bench-edge bench-decisions bench-million soak imbalance calibrators cohorts reference out-of-scope gpu-bench gpu-test clean triton

VENV ?= .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# The first that runs and is 3.11 or 3.12; some names are only shims.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo "$$p" && break; done)
TRITON_HOME := $(or $(OVR_TRITON_HOME),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ovr/triton)
ARGS ?=

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{printf "  make %-16s %s\n", $$1, $$2}'

setup: $(VENV)/.digits triton ## environment in .venv and the embedded Triton server

demo: setup ## train on handwritten digits, export, publish, serve, compare every runtime (ARGS="backbone=cnn ...")
	$(PY) scripts/demo.py $(ARGS)

PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: lint triton ## linters and tests (ARGS="-k export ...")
	$(PYTEST) -m "not exhaustive" $(ARGS)

test-all: lint triton ## also the long tests that `test` leaves out: variants of others, rare events
	$(PYTEST) $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy and the layers of imports
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

# A run that lacks sets of the stored one stores nothing (benchmarks/report.py).
define measure
start=$$(date +%s); for name in $(1); do \
	  $(PY) -m benchmarks.$$name $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/$$name.json) $(ARGS) || exit 1; done; \
	  echo "$@: $$(( $$(date +%s) - start )) s"
endef

bench: $(VENV)/.bench ## training, calibration and export of heads against peers, into benchmarks/results and docs/scaling.md (ARGS=--quick stores none)
	$(call measure,heads head_step scaling lightning_loop convex sgd_heads calibration export)
	$(if $(findstring --quick,$(ARGS)),,$(PY) -m scripts.scaling_page)

bench-serving: $(VENV)/.bench triton ## servers, clients and batch scoring against peers, under load, faults and kills: half an hour, with nothing else running (ARGS=--quick)
	$(call measure,serving client swap supervision kills fuzz serverless batch_scoring)

bench-edge: export OVR_REFERENCE_DATA := $(or $(DATA),$(OVR_REFERENCE_DATA))
bench-edge: $(VENV)/.bench ## the edge predictor against peers, and patches (DATA=FOLDER; digits alone without | ARGS=--quick)
	$(call measure,edge edge_patch)

bench-decisions: export OVR_REFERENCE_DATA := $(or $(DATA),$(OVR_REFERENCE_DATA))
bench-decisions: $(VENV)/.bench ## whether thresholds, intervals and the gate keep what they promise (DATA=FOLDER; digits alone without | ARGS=--quick)
	$(call measure,decisions intervals gate)

bench-million: $(VENV)/.bench ## a million heads from the first step to the bundle, and their temperatures: some 11 minutes and 4 GiB (ARGS=--quick)
	$(call measure,million_heads million_temperatures)
	$(if $(findstring --quick,$(ARGS)),,$(PY) -m scripts.scaling_page)

soak: $(VENV)/.bench triton ## a server under load for 30 minutes, and 10 with a head killed each minute (ARGS="--minutes 5 --kill-minutes 2" | ARGS=--quick)
	$(PY) -m benchmarks.soak $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/soak.json) $(ARGS)

# The sets are not in the repository; those that DATA lacks are skipped.
DATA ?= $(OVR_REFERENCE_DATA)
reference: $(VENV)/.bench ## public data sets beside baselines and published figures (DATA=FOLDER ARGS="letter bibtex" | ARGS=--quick)
	$(PY) -m benchmarks.reference $(if $(DATA),--data $(DATA)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/reference.json) $(ARGS)

imbalance: $(VENV)/.bench ## means against imbalance on page-blocks (DATA=FOLDER | ARGS=--quick)
	$(PY) -m benchmarks.imbalance $(if $(DATA),--data $(DATA)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/imbalance.json) $(ARGS)

calibrators: $(VENV)/.bench ## our calibrators beside scikit-learn's, netcal's and torch-uncertainty's on public data (DATA=FOLDER; digits alone without)
	$(PY) -m benchmarks.calibrators $(if $(DATA),--data $(DATA)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/calibrators.json) $(ARGS)

cohorts: $(VENV)/.bench ## a calibration for each cohort beside the pooled one (DATA=FOLDER with adult; simulated alone without)
	$(PY) -m benchmarks.cohorts $(if $(DATA),--data $(DATA)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/cohorts.json) $(ARGS)

out-of-scope: $(VENV)/.bench ## clinc150's texts of no intent beside the published table (DATA=FOLDER | ARGS=--quick)
	$(PY) -m benchmarks.out_of_scope $(if $(DATA),--data $(DATA)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/out_of_scope.json) $(ARGS)

# A GPU machine has its own torch and Triton-lang: nothing is installed here. GPU_PY=python3 names its Python.
GPU_PY ?= $(if $(wildcard $(PY)),$(PY),python3)
NEEDS_CUDA = @$(GPU_PY) -c 'import sys, torch; torch.cuda.is_available() or sys.exit(f"error: make $@ needs a CUDA device; torch {torch.__version__} sees none")'

GPU_SCRIPTS := gpu-head-step gpu-tiles gpu-temperatures gpu-lightning
GPU_BENCH = $(GPU_PY) -m benchmarks.$(subst -,_,$(1)) $(if $(findstring --quick,$(ARGS)),,--json benchmarks/results/$(subst -,_,$(1)).json) $(ARGS)
.PHONY: $(GPU_SCRIPTS)

define newline


endef

gpu-bench: ## all measurements on a CUDA device, into benchmarks/results (ARGS=--quick stores none; GPU_PY=python3)
	$(NEEDS_CUDA)
	$(foreach name,$(GPU_SCRIPTS),$(call GPU_BENCH,$(name))$(newline))

# Each of them ends within ten minutes.
gpu-head-step: ## of these, the head step against cuBLAS and others' schemes
gpu-tiles: ## of these, the tiles of the head step's kernels
gpu-temperatures: ## of these, temperatures from features
gpu-lightning: ## of these, Lightning's loop around the head step
$(GPU_SCRIPTS):
	$(NEEDS_CUDA)
	$(call GPU_BENCH,$@)

# The project's own settings ask for a plug-in that may be missing, and turn warnings into errors: other versions give other ones.
gpu-test: ## the tests that a CUDA device changes (GPU_PY=python3 ARGS="-k graph ...")
	$(NEEDS_CUDA)
	$(GPU_PY) -m pytest -o addopts="-ra --strict-markers" -W default tests/gpu tests/head_step tests/training/test_temperatures.py $(ARGS)

clean: ## remove what the other targets made
	@if [ -f $(VENV)/.servers ]; then while read -r server; do echo "rm -rf $$server"; rm -rf "$$server"; done < $(VENV)/.servers; fi
	rm -rf $(VENV) outputs multirun build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	[ ! -d triton_repo ] || find triton_repo -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; say PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Not compiled: that takes a minute for the 20 000 files, most of which nothing ever imports.
# scikit-learn carries the demo's digits.
$(VENV)/.digits: pyproject.toml | $(VENV)/.made
	$(PIP) install --no-compile --editable '.[digits,report]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.made
	$(PIP) install --no-compile --editable '.[dev]'
	@touch $(VENV)/.digits $@

$(VENV)/.bench: pyproject.toml | $(VENV)/.made
	$(PIP) install --no-compile --editable '.[bench]'
	@touch $(VENV)/.digits $@

# Finds the embedded server, or installs it. The cache is shared: what this installed is noted, and `clean` removes nothing else.
triton: $(VENV)/.digits
	@before=$$(ls -d "$(TRITON_HOME)"/pytriton* 2>/dev/null); $(PY) -m ovr.serving.embedded || exit 1; \
	for server in "$(TRITON_HOME)"/pytriton*; do \
	  case "$$before" in *"$$server"*) ;; *) echo "$$server" >> $(VENV)/.servers ;; esac; done
