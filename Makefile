# The public commands. Everything runs in .venv, made from the hashed requirements.lock.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers
PEERS_STAMP := $(PEERS)/.installed

.PHONY: help env env-peers demo test test-distributed test-crash test-stores test-interop test-cuda fuzz-sharding bench-sharding \
	bench-stream bench-training experiment check format lock clean

help:
	@echo "make demo   everything from nothing: data, shards, pre-training, weights, report"
	@echo "make test   the test suite"
	@echo "make check  lint, format, types, import directions"
	@echo "make test-distributed  1, 2 and 4 ranks train alike; two nodes (network namespaces, as root)"
	@echo "make test-crash     kill the sharding job and training runs at seeded moments, fill their disks"
	@echo "make test-stores    shards on Ceph's S3 and rclone's"
	@echo "make test-interop   our shards in other tools, their tars in the stream"
	@echo "make test-cuda      the model, views and a run on a CUDA GPU; fails without one"
	@echo "make fuzz-sharding  5,000 damaged samples through every adapter"
	@echo "make bench-sharding figures of the sharding job against its peers"
	@echo "make bench-stream   figures of the stream against its peers, and of its order"
	@echo "make bench-training figures of a training step against a plain one, on the GPU if there is one"
	@echo "make experiment TIER=A  pre-train, fine-tune and judge on generated worlds: docs/results.md"
	@echo "make env    the environment alone, in .venv   make env-peers   one more with the peers, in .venv-peers"
	@echo "make lock   re-resolve requirements.lock   make format   rewrite to the house style"

env: $(STAMP)

$(STAMP): requirements.lock requirements-uv.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; pass PYTHON=python3.12, say")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	touch $@

env-peers: $(PEERS_STAMP)

# Both locks are complete, so nothing is resolved here: --no-deps lets the override of `make lock` stand.
$(PEERS_STAMP): $(STAMP) requirements-peers.lock
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps --require-hashes -r requirements.lock -r requirements-peers.lock
	$(BIN)/uv pip install --quiet --python $(PEERS)/bin/python --no-deps --no-build-isolation -e .
	touch $@

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

test: env
	$(BIN)/python -m pytest

# Slow suites, not part of `make test`. Results are recorded in docs/benchmarks.md.
test-distributed: env
	$(BIN)/python -m pytest tests/distributed

test-crash: env
	$(BIN)/python -m pytest tests/crash

test-stores: env
	$(BIN)/python -m pytest tests/stores

test-interop: env-peers
	$(PEERS)/bin/python -m pytest tests/interop

test-cuda: env
	$(BIN)/python -m pytest tests/cuda

fuzz-sharding: env
	$(BIN)/python tests/fuzz_sharding.py --samples 5000 --seed 0

bench-sharding: env-peers
	$(PEERS)/bin/python launch/benchmark.py sharding

bench-stream: env-peers
	$(PEERS)/bin/python launch/benchmark.py stream
	$(PEERS)/bin/python launch/benchmark.py order

# Days on a CPU: steps alone are an hour and a half of one core in a world of tier A, two more in one of B,
# six more in one of C. Goes on where it was.
experiment: env
	$(BIN)/python launch/experiment.py run --tier $(or $(TIER),A)

bench-training: env
	$(BIN)/python launch/benchmark.py training

# Two ranks of one thread on any machine, GPU or not: the point is to see the whole path in minutes.
# Called again after an interruption, each step goes on where it was.
demo: env
	test -e runs/demo/native/luperson || $(BIN)/python -m sharding miniature runs/demo/native \
		--set 'datasets=[crowdhuman,ecp,msmt17,cuhk03,luperson]'
	$(BIN)/python -m sharding write --config launch/configs/sharding/demo.yaml
	DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 $(BIN)/deepspeed -q --num_gpus 2 \
		launch/pretrain.py --config launch/configs/pretrain/demo.yaml --resume
	$(BIN)/python launch/export.py runs/demo/pretrain --target torchvision
	DS_ACCELERATOR=cpu $(BIN)/python launch/report.py runs/demo/pretrain

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Run after changing dependencies. Records no registry: pip's and uv's own settings choose it.
lock: env
	$(BIN)/uv pip compile pyproject.toml --extra dev --generate-hashes --universal --no-header --quiet -o requirements.lock
	echo 'numpy>=2' | $(BIN)/uv pip compile requirements-peers.in -c requirements.lock --override - --generate-hashes --universal --no-header --quiet -o requirements-peers.lock
	echo 'uv==0.13.9' | $(BIN)/uv pip compile - --generate-hashes --universal --no-header --quiet -o requirements-uv.lock

clean:
	rm -rf $(VENV) $(PEERS) runs
