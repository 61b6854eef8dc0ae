# fwd2bot: `make demo` shows it at work, `make test` checks it; either may be run first, and again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TEST_PROCESSES ?= 2
FAISS ?= cpu
MEASURE_LLAVA = $(PYTHON) -m training.measure training/configs/llava-1.5-7b-k16.toml --steps 10 \
	--set lvlm.base=training/shapes/llava-1.5-7b

CONFIGS := training/configs
TRAIN := $(BIN)/python -m training
TEACHERS := --teachers runs/tiny/model --two-towers runs/two_tower

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest test-newest test-openclip test-st lint benchmark benchmark-rivals weights gpu gpu-here clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## draw a gallery, search it, and ask a deleted image a question
	$(BIN)/python -m benchmarks.demo

test: lint ## lint, type check and run all tests
	$(BIN)/python -m pytest -q -n $(TEST_PROCESSES)

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

benchmark: $(VENV)-st/.extras ## write the tables of docs/benchmarks.md, races aside; FAST=1 in minutes, DATA=DIR for real photos
	$(VENV)-st/bin/python -m benchmarks.report $(if $(FAST),--fast) $(if $(DATA),--data $(DATA))

benchmark-rivals: $(INSTALLED) ## race rclip and clip-retrieval, each in an environment of its own; hours
	$(BIN)/python -m benchmarks.report $(if $(FAST),--fast) --place runs/rivals \
		--only side_by_side_clip $(foreach rival,rclip_3_3_0 rclip_2_1_6 clip_retrieval_2_45_0,\
			race_$(rival)_1mp $(if $(FAST),,race_$(rival)_12mp))

weights: $(INSTALLED) ## with DATA=DIR: make the embedded model from nothing; eleven hours of two cores, and may be stopped
	@test -d "$(DATA)" || { echo "make weights DATA=DIR: the folder of flickr8k, flickr30k_text and coco_unlabelled" >&2; exit 1; }
	$(TRAIN).train $(CONFIGS)/tiny.toml --data $(DATA) --run runs/tiny
	$(TRAIN).two_tower $(CONFIGS)/tiny.toml --data $(DATA) --run runs/two_tower
	$(MAKE) runs/teachers/texts.parquet
	$(TRAIN).train $(CONFIGS)/tiny-distilled.toml --data $(DATA) --run runs/tiny-distilled
	$(MAKE) runs/teachers-144/texts.parquet
	$(TRAIN).train $(CONFIGS)/tiny-128.toml --data $(DATA) --run runs/tiny-128
	$(MAKE) runs/teacher/seen-80
	$(TRAIN).two_tower $(CONFIGS)/teacher.toml --data $(DATA) --run runs/teacher
	$(MAKE) runs/tiny-grafted/seen-112
	$(TRAIN).train $(CONFIGS)/tiny-grafted.toml --data $(DATA) --run runs/tiny-grafted

runs/teachers/texts.parquet:
	$(TRAIN).teach $(CONFIGS)/tiny-distilled.toml --data $(DATA) $(TEACHERS) --out runs/teachers

runs/teachers-144/texts.parquet:
	$(TRAIN).teach $(CONFIGS)/tiny-128.toml --data $(DATA) $(TEACHERS) --image-size 144 --out runs/teachers-144

runs/teachers-160/texts.parquet:
	$(TRAIN).teach $(CONFIGS)/tiny-128.toml --data $(DATA) --teachers runs/tiny-128/model --image-size 128 160 \
		--out runs/teachers-160

runs/teachers-grafted/texts.parquet:
	$(TRAIN).teach $(CONFIGS)/tiny-grafted.toml --data $(DATA) --teachers runs/tiny-128/model \
		--two-towers runs/teacher --image-size 128 160 --out runs/teachers-grafted

# The first steps of a run, at fewer pixels a side; the file says that they are done.
runs/teacher/seen-80: runs/teachers-160/texts.parquet
	$(TRAIN).two_tower $(CONFIGS)/teacher.toml --data $(DATA) --run runs/teacher --until 2400 \
		--set lvlm.image_size=80 --set optimizer.cooldown_steps=0
	@touch $@

runs/tiny-grafted/seen-96: runs/teachers-grafted/texts.parquet
	$(TRAIN).train $(CONFIGS)/tiny-grafted.toml --data $(DATA) --run runs/tiny-grafted --until 660 \
		--set lvlm.image_size=96 --set optimizer.cooldown_steps=0
	@touch $@

runs/tiny-grafted/seen-112: runs/tiny-grafted/seen-96
	$(TRAIN).train $(CONFIGS)/tiny-grafted.toml --data $(DATA) --run runs/tiny-grafted --until 1050 \
		--set lvlm.image_size=112
	@touch $@

gpu: ## with a CUDA GPU: the tests that need one and the figures of docs/performance.md, in an environment of their own
	$(MAKE) VENV=$(VENV)-gpu FAISS=gpu $(VENV)-gpu/.installed
	$(MAKE) gpu-here PYTHON=$(VENV)-gpu/bin/python

gpu-here: ## the same with PYTHON as it is, where nothing can be installed
	$(PYTHON) -m pytest -q -m gpu
	$(MEASURE_LLAVA) --rows 64
	$(MEASURE_LLAVA) --rows 64 --set chunk_size=0
	$(MEASURE_LLAVA) --rows 16 --set chunk_size=0 --set gradient_checkpointing=false
	$(PYTHON) -m benchmarks.throughput --device cuda

# lowest-direct and highest are resolutions of uv: neither reads constraints.txt.
test-lowest: RESOLUTION := lowest-direct
test-lowest: ## all tests with the oldest versions that pyproject.toml accepts, in an environment of their own
test-newest: RESOLUTION := highest
test-newest: ## the same with the newest
test-lowest test-newest: test-%:
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m pip install --quiet uv
	$(VENV)-$*/bin/uv pip install --quiet --upgrade --python $(VENV)-$*/bin/python --resolution $(RESOLUTION) -e ".[$(FAISS),dev]"
	$(VENV)-$*/bin/python -m pytest -q -n $(TEST_PROCESSES)

test-openclip: ## the tests of the extra [openclip], in an environment of their own
	$(MAKE) VENV=.venv-openclip .venv-openclip/.installed
	.venv-openclip/bin/python -m pip install --quiet --no-deps open_clip_torch==3.3.0 torchvision==0.28.0 timm==1.0.31 ftfy==6.3.1 wcwidth==0.9.4
	.venv-openclip/bin/python -m pytest -q tests/test_encoders_openclip.py tests/test_encoders_openclip_reader.py

test-st: $(VENV)-st/.extras ## the tests of the extras [st] and [mteb], in an environment of their own
	HF_HUB_OFFLINE=1 $(VENV)-st/bin/python -m pytest -q tests/test_encoders_sentence.py tests/test_benchmarks_mteb.py

$(VENV)-st/.extras: pyproject.toml constraints.txt
	$(MAKE) VENV=$(VENV)-st $(VENV)-st/.installed
	$(VENV)-st/bin/python -m pip install --quiet -c constraints.txt sentence-transformers==6.2.0 mteb==2.26.24
	-$(VENV)-st/bin/python -m pip install --quiet -c constraints.txt hnswlib  # built from source: with a C++ compiler
	@touch $@

clean: ## remove the environment, the demo's gallery and all caches
	rm -rf $(VENV) .venv-openclip .venv-st .venv-gpu .venv-lowest .venv-newest demo-gallery build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fwd2bot needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(FAISS),dev]"
	@touch $@
