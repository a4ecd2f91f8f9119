# The public commands. Everything runs in .venv, made from the hashed requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help env demo test check format lock clean

help:
	@echo "make demo   everything from nothing: data, shards, pre-training, weights, report"
	@echo "make test   the test suite"
	@echo "make check  lint, format, types, import directions"
	@echo "make env    the environment alone, in .venv"
	@echo "make lock   re-resolve requirements.lock   make format   rewrite to the house style"

env: $(STAMP)

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; pass PYTHON=python3.12, say")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

test: env
	$(BIN)/python -m pytest

# Two ranks of one thread on any machine, GPU or not: the point is to see the whole path in minutes.
# Called again after an interruption, each step goes on where it was.
demo: env
	test -e runs/demo/native/luperson || $(BIN)/python -m sharding miniature runs/demo/native
	$(BIN)/python -m sharding write --config launch/configs/sharding/demo.yaml
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/deepspeed -q --num_gpus 2 \
		launch/pretrain.py --config launch/configs/pretrain/demo.yaml --resume
	$(BIN)/python launch/export.py runs/demo/pretrain --target torchvision
	$(BIN)/python launch/report.py runs/demo/pretrain

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run after changing dependencies. Records no registry: pip's and uv's own settings choose it.
lock: env
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --universal --no-header --quiet -o requirements.lock
	echo 'uv==0.13.9' | $(BIN)/uv pip compile - --generate-hashes --universal --no-header --quiet -o requirements-uv.lock

clean:
	rm -rf $(VENV) runs
