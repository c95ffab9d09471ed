# make setup | demo | test | lint | bench | reproduce | clean. Every line that it runs is one that a user can type.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench reproduce clean

VENV := .venv
BIN := $(VENV)/bin
RAW := demo/raw
SHARDS := demo/shards
RUN := demo/run
SEED ?= 0
# Processes of the demo: as many as there are GPUs, two at most; two where there are none.
RANKS ?= $(shell $(BIN)/python -c 'import torch; print(min(torch.cuda.device_count(), 2) or 2)')
# The first Python of the supported ones that really starts.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
# What an installation depends on; a change of it installs again.
WANTED = $$(cat requirements.txt pyproject.toml Makefile | sha256sum | cut -d' ' -f1)

help:
	@echo "make setup   .venv and everything in it; skipped when nothing has changed"
	@echo "make demo    set-up, then the whole path on the toy world, in minutes on two CPU cores"
	@echo "make test    set-up, then all tests"
	@echo "make lint    ruff and mypy"
	@echo "make bench   all benchmarks, each a table against peers; minutes each (BENCH=loader: one of benchmarks/)"
	@echo "make reproduce   co-finetuning against transfer learning, with a report; hours, goes on where it was (QUICK=1: 11 minutes)"
	@echo "make clean   removes the demo's files (demo/), not .venv"

setup:
	@if ! command -v ffmpeg >/dev/null || ! command -v ffprobe >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing FFmpeg with apt-get"; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq ffmpeg; } >/tmp/ffmpeg-apt.log 2>&1 \
				|| { tail -5 /tmp/ffmpeg-apt.log; echo "error: apt-get could not install ffmpeg"; exit 1; }; \
		else \
			echo "error: FFmpeg is missing: install it (Debian, Ubuntu: sudo apt-get install ffmpeg) and run make again"; exit 1; \
		fi; \
	fi
	@if [ "$$(cat $(VENV)/.installed 2>/dev/null)" != "$(WANTED)" ]; then \
		[ -n "$(PYTHON)" ] || { echo "error: Python 3.11 or newer is missing: install it, or make PYTHON=/path/to/python"; exit 1; }; \
		echo "installing into $(VENV) with $$($(PYTHON) --version) (about 5 GB; minutes)"; \
		$(PYTHON) -m venv $(VENV) \
			|| { echo "error: no venv module: install it (Debian, Ubuntu: sudo apt-get install python3-venv)"; exit 1; }; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt || exit 1; \
		echo "$(WANTED)" > $(VENV)/.installed; \
	fi

# As many files of tests at a time as there are cores, 8 at most; each in one thread, as others want the cores too.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

PACK_ENDS = --short-side 96 --out $(SHARDS)

demo: setup
	$(BIN)/python shard_tools/make_toy.py --out $(RAW) --size small --seed $(SEED)
	$(BIN)/python shard_tools/pack_kinetics.py --annotations $(RAW)/kinetics/annotations/train.csv \
		--videos $(RAW)/kinetics/videos/train --split train $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_kinetics.py --annotations $(RAW)/kinetics/annotations/validate.csv \
		--videos $(RAW)/kinetics/videos/validate --split validate $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_moments.py --annotations $(RAW)/moments/trainingSet.csv \
		--categories $(RAW)/moments/moments_categories.txt --videos $(RAW)/moments/training --split train $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_moments.py --annotations $(RAW)/moments/validationSet.csv \
		--categories $(RAW)/moments/moments_categories.txt --videos $(RAW)/moments/validation --split validation $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_ssv2.py --annotations $(RAW)/ssv2/train.json \
		--labels $(RAW)/ssv2/labels.json --videos $(RAW)/ssv2/videos --split train $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_ssv2.py --annotations $(RAW)/ssv2/validation.json \
		--labels $(RAW)/ssv2/labels.json --videos $(RAW)/ssv2/videos --split validation $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_ava.py --annotations $(RAW)/ava/ava_train_v2.2.csv \
		--excluded $(RAW)/ava/ava_train_excluded_timestamps_v2.2.csv --proposals $(RAW)/ava/ava_train_predicted_boxes.csv \
		--labelmap $(RAW)/ava/ava_action_list_v2.2.pbtxt --videos $(RAW)/ava/videos --split train $(PACK_ENDS)
	$(BIN)/python shard_tools/pack_ava.py --annotations $(RAW)/ava/ava_val_v2.2.csv \
		--excluded $(RAW)/ava/ava_val_excluded_timestamps_v2.2.csv --proposals $(RAW)/ava/ava_val_predicted_boxes.csv \
		--labelmap $(RAW)/ava/ava_action_list_v2.2.pbtxt --videos $(RAW)/ava/videos --split val $(PACK_ENDS)
	$(BIN)/deepspeed --num_accelerators $(RANKS) train/main.py --ds ds_configs/zero2.json --resume seed=$(SEED)
	@# The first movie of the validation list, drawn.
	video=$$(cut -d, -f1 $(RAW)/ava/ava_val_v2.2.csv | head -1); \
	$(BIN)/python train/predict.py --checkpoint $(RUN) --task ava --video $(RAW)/ava/videos/$$video.mp4 --video-start 900 \
		--boxes $(RAW)/ava/ava_val_predicted_boxes.csv --out $(RUN)/prediction.mp4 --still $(RUN)/prediction.png
	$(BIN)/deepspeed --num_accelerators $(RANKS) train/evaluate.py --ds ds_configs/zero2.json --checkpoint $(RUN)
	@echo
	@echo "video        $(RUN)/prediction.mp4 (a still: $(RUN)/prediction.png)"
	@echo "TensorBoard  $(BIN)/tensorboard --logdir $(RUN)/tensorboard"
	@echo "checkpoint   $(RUN)/checkpoints/$$(cat $(RUN)/checkpoints/latest)"
	@echo "metrics      $(RUN)/eval/metrics.json"

BENCH ?= packing packing_plan loader loader_scale loader_memory index_scale model ava_map train_step

bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

reproduce: setup
	$(BIN)/python -m benchmarks.reproduce $(if $(QUICK),--quick) $(if $(RESULTS),--results $(RESULTS))

clean:
	rm -rf demo
