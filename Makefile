# make demo: set up and run the main job on real input · make test: set up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTO_VENV := .venv-proto
STAMP := $(VENV)/.stamp
PROTO_STAMP := $(PROTO_VENV)/.stamp
PROTOS := $(wildcard proto/edgefarm/v1/*.proto)

.PHONY: setup demo example-imagenet test test-long check format proto clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
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

test-long: setup
	$(BIN)/pytest -m long

demo: setup
	@$(BIN)/controller deploy --fleet deploy/examples/fashion/edge.yaml

example-imagenet: setup
	@$(BIN)/python deploy/examples/imagenet/prepare.py
	@$(BIN)/controller deploy --fleet deploy/examples/imagenet/edge.yaml

bench-%: setup
	@$(BIN)/python tests/benchmarks/$*.py

clean:
	rm -rf $(VENV) $(PROTO_VENV)
