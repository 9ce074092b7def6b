# Everything runs in .venv, which the first target that needs it makes. PYTHON=python3.12 make test chooses another interpreter.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.invdiff-installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint gpu gpu-train clean
# networks whose training data the package makes up by itself
NETWORKS := ct128 ct128_autoencoder ct128_latent darcy64 source64 terrain128_crops sar_optical sar_optical_fast \
	burgers_fno burgers_wdno burgers_wdno_sr smoke_wdno

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "  make %-9s %s\n", $$1, $$2 }'

install: $(STAMP)  ## .venv with the tested versions (every target below does this first)

demo: $(STAMP)  ## sparse-view CT with uncertainty: a table, and a report in outputs/demo
	@$(BIN)/invdiff run task=ct_sparse_view seed=4 out=outputs/demo

test: $(STAMP)  ## the fast tests, on two cores
	$(PYTEST) -n $(WORKERS) -m "not slow and not gpu"

test-all: lint  ## every test that needs no GPU, and lint
	$(PYTEST) -n $(WORKERS) -m "not gpu"

lint: $(STAMP)  ## ruff on everything, mypy on invdiff/core
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(STAMP)  ## the tests and benchmarks that need a CUDA device
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make gpu: torch finds no CUDA device")'
	$(BIN)/python -m pytest -m gpu
	@for name in kernels dwt flows training overhead krylov_steps; do \
	    echo "benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py --device cuda || exit 1; done

gpu-train: $(STAMP)  ## full-size training of the shipped networks on a CUDA device; stopped, it goes on where it was
	@for name in $(NETWORKS); do echo "$$name"; $(BIN)/invdiff train prior=$$name device=cuda out=outputs/train/$$name || exit 1; done
	@$(BIN)/invdiff train prior=terrain128 device=cuda start=outputs/train/terrain128_crops/terrain128_crops.safetensors
	@for part in "0 4000" "1000 64"; do set -- $$part; \
	    $(BIN)/invdiff simulate set=vorticity64 device=cuda generator.seed=$$1 count=$$2 out=outputs/train/vorticity_$$1.h5 || exit 1; done
	@$(BIN)/invdiff train prior=vorticity64 device=cuda source.path=outputs/train/vorticity_0.h5 \
	    card.held_out.path=outputs/train/vorticity_1000.h5 out=outputs/train/vorticity64

clean:  ## remove .venv, outputs and caches
	rm -rf $(VENV) build dist outputs multirun .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# a .venv that already works is kept; a broken one is made again
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	    || { echo "invdiff needs Python 3.10 or newer, and '$(PYTHON)' is not: name one, as in 'make test PYTHON=python3.11'"; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || { echo "[1/3] making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); }
	@echo "[2/3] installing the build tool"
	@$(PIP) setuptools
	@echo "[3/3] installing invdiff and what it needs, once (torch is large: this can take minutes)"
	@$(PIP) --no-build-isolation --use-pep517 -e ".[dev]"
	@touch $@
