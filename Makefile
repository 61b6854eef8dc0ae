# fwd2bot: `make demo` shows it at work, `make test` checks it; either may be run first, and again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RESULTS := runs/benchmark
# make benchmark FAST=1 draws fewer scenes: minutes instead of an hour, and figures to match.
SCENES := $(if $(FAST),100,1000)

.DEFAULT_GOAL := help
.PHONY: help demo test test-openclip lint benchmark clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## draw a gallery, search it, and ask a deleted image a question
	$(BIN)/python -m benchmarks.demo

test: lint ## lint, type check and run all tests
	$(BIN)/python -m pytest -q

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(INSTALLED) ## measure on drawn scenes; FAST=1 for a quick look
	$(BIN)/python -m benchmarks.scenes --out $(RESULTS)/scenes --count $(SCENES) --seed 2
	$(BIN)/python -m benchmarks.text_to_image --dataset $(RESULTS)/scenes/dataset_scenes.json \
		--images $(RESULTS)/scenes --json $(RESULTS)/text_to_image.json --force
	$(BIN)/python -m benchmarks.compositionality --count $(SCENES) --json $(RESULTS)/compositionality.json --force
	$(BIN)/python -m benchmarks.generation --dataset $(RESULTS)/scenes/dataset_scenes.json \
		--images $(RESULTS)/scenes --json $(RESULTS)/generation.json --force
	$(BIN)/python -m benchmarks.speed --images $(RESULTS)/scenes --json $(RESULTS)/speed.json --force

test-openclip: ## the tests of the extra [openclip], in an environment of their own
	$(MAKE) VENV=.venv-openclip .venv-openclip/.installed
	.venv-openclip/bin/python -m pip install --quiet --no-deps open_clip_torch==3.3.0 torchvision==0.28.0 timm==1.0.31 ftfy==6.3.1 wcwidth==0.9.4
	.venv-openclip/bin/python -m pytest -q tests/test_encoders_openclip.py

clean: ## remove the environment, the demo's gallery and all caches
	rm -rf $(VENV) .venv-openclip demo-gallery build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fwd2bot needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[cpu,dev]"
	@touch $@
