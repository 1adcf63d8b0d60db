# make demo: set up and run the main job on real input · make test: set up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
STAMP := $(VENV)/.stamp
DEMO_STAMP := $(VENV)/.stamp-demo
PROTO_STAMP := $(PROTO_VENV)/.stamp
PROTOS := $(wildcard proto/edgefarm/v1/*.proto)

.PHONY: setup demo example-imagenet example-ocr example-mixed example-pruned example-keras example-minilm test test-long check format proto wheelhouse clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ $(DEMO_STAMP)

# What the demo needs and no more: half of the size.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[agent,controller]'
	@touch $@

$(PROTO_STAMP): constraints-proto.txt
	@test -x $(PROTO_VENV)/bin/python || $(PYTHON) -m venv $(PROTO_VENV)
	@$(PROTO_VENV)/bin/pip install --quiet --disable-pip-version-check -r constraints-proto.txt
	@touch $@

proto: $(PROTO_STAMP)
	@$(PROTO_VENV)/bin/python -m grpc_tools.protoc -Iproto --python_out=proto --pyi_out=proto --grpc_python_out=proto $(PROTOS)

check: setup proto
	@git diff --exit-code --stat -- proto/edgefarm/v1 || { echo "generated code differs: commit what 'make proto' wrote"; exit 1; }
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

test: setup
	$(BIN)/pytest -m "not long"

test-long: setup $(PROTO_STAMP)
	$(BIN)/pytest -m long

demo: $(DEMO_STAMP)
	@$(BIN)/controller deploy --fleet deploy/examples/fashion/edge.yaml

example-imagenet: setup
	@$(BIN)/python deploy/examples/imagenet/prepare.py
	@$(BIN)/controller deploy --fleet deploy/examples/imagenet/edge.yaml

example-ocr: setup
	@$(BIN)/python deploy/examples/ocr/prepare.py
	@$(BIN)/controller deploy --fleet deploy/examples/ocr/edge.yaml

# Needs Debian's package dataset-fashion-mnist; half an hour on two cores, most of it training.
example-pruned: setup
	@$(BIN)/python deploy/examples/pruned/prepare.py
	@$(BIN)/controller deploy --fleet deploy/examples/pruned/edge.yaml

# Needs Debian's package dataset-fashion-mnist and 2.5 GB for TensorFlow; a quarter of an hour on two cores, most of it training.
example-keras: setup
	@$(BIN)/python deploy/examples/keras/prepare.py
	@$(BIN)/controller toolchain install keras
	@$(BIN)/controller deploy --fleet deploy/examples/keras/edge.yaml

example-minilm: setup
	@$(BIN)/python deploy/examples/minilm/prepare.py
	@$(BIN)/controller deploy --fleet deploy/examples/minilm/edge.yaml

example-mixed: setup
	@$(BIN)/controller deploy --fleet deploy/examples/mixed/edge.yaml

# MACHINE and PYTHON_VERSION of the devices, e.g. make wheelhouse MACHINE=aarch64 PYTHON_VERSION=3.11; default: like this one
wheelhouse: setup
	@PYTHON=$(BIN)/python deploy/wheelhouse.sh wheelhouse $(MACHINE) $(PYTHON_VERSION)

# The tools that bench-optimizer compares with, in an environment of their own: gigabytes.
.venv-peers/.stamp: tests/benchmarks/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

bench-optimizer: setup .venv-peers/.stamp
	@$(BIN)/python -m tests.benchmarks.optimizer

bench-%: setup
	@$(BIN)/python -m tests.benchmarks.$*

bench-%-tls: setup
	@$(BIN)/python -m tests.benchmarks.$* --tls

clean:
	rm -rf $(VENV) $(PROTO_VENV)
