# `make` alone lists what there is. The first call of any of them makes .venv, which `source .venv/bin/activate` enters.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

DATA ?=
OUT ?= runs/demo
QUICK ?=
ARGS ?=

.PHONY: help demo test check format bench bench-gpu clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'

# The interpreter is asked, not believed: a pyenv shim named python3.12 may exist and have no Python 3.12 behind it.
$(STAMP): pyproject.toml constraints.txt
	@for python in $${PYTHON:-python3.11 python3.12 python3.13 python3}; do
	  "$$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break || python=
	done
	if [ -z "$$python" ]; then
	  echo "error: found no Python 3.11 or newer with venv: install one, or name it: make PYTHON=/path/to/python3.11" >&2
	  exit 2
	fi
	echo "making $(VENV) with $$("$$python" --version): PyTorch and Ray are some GB, once"
	"$$python" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,dicom]'
	touch $@

# QUICK=1 keeps every stage and shrinks what it works on: whether the way is open, in a few minutes on two cores.
# The phantom's test part is larger than usual: some 60 films would leave an interval too wide to say anything.
PREPARE_FLAGS := $(if $(DATA),--images "$(DATA)",--fractions 0.5 0.15 0.35) \
	$(if $(QUICK),--size 32 $(if $(DATA),,--phantom.patients 120))
ABLATE_FLAGS := --recipe configs/demo.yaml --fractions 1 --latent mixture $(if $(QUICK),\
	--arms real duplicate_real synthetic --generator-seeds 1 --pool-seeds 1 --classifier-seeds 2 --steps 60)

# The stages resume: the same call again, after an interruption too, does what is missing. Ray gives each task the
# threads of its cores, so OMP_NUM_THREADS stays unset here.
demo: $(STAMP)  ## images in, report out: make demo [DATA=dir] [OUT=runs/demo] [QUICK=1]
	@$(BIN)/python -m vaegan.prepare $(PREPARE_FLAGS) --out "$(OUT)/data"
	$(BIN)/python -m downstream.ablate $(ABLATE_FLAGS) --data "$(OUT)/data" --out "$(OUT)/ablation"
	$(BIN)/python -m downstream.report --results "$(OUT)/ablation" --out "$(OUT)/report"

# One thread: the tests' arrays are small, and threads of several processes on few cores wait for each other.
test: $(STAMP)  ## every test: make test [ARGS="tests/vaegan -k shards"]
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

check: $(STAMP)  ## ruff, mypy, and which module may import which
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## every benchmark, in its quick form; fails if one fails
	@failed=
	for file in $(filter-out benchmarks/gpu_%,$(wildcard benchmarks/*.py)); do
	  echo "== $$file"
	  $(BIN)/python "$$file" --quick || failed="$$failed $$file"
	done
	[ -z "$$failed" ] || { echo "error: failed:$$failed" >&2; exit 1; }

# An OUT given here reaches the programs as an environment variable; without one they write to runs/bench_gpu.
bench-gpu: $(STAMP)  ## the benchmarks that need a GPU: make bench-gpu [OUT=runs/bench_gpu] [ARGS=--quick]
	@if ! $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
	  echo "error: torch sees no GPU on this machine: run this where nvidia-smi lists one" >&2
	  exit 2
	fi
	failed=
	for file in $(wildcard benchmarks/gpu_*.py); do
	  echo "== $$file"
	  $(BIN)/python "$$file" $(ARGS) || failed="$$failed $$file"
	done
	[ -z "$$failed" ] || { echo "error: failed:$$failed" >&2; exit 1; }

clean:  ## remove .venv and caches; runs/ and data/ stay
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find cluster vaegan downstream serve tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
