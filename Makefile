# Every verb of the project; people, hooks and CI use the same ones. `make help` lists them.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SECONDS ?= 30
MINUTES ?= 10
WORKERS ?= auto
RECIPE ?= folded
HOLD_OUT ?= 10000
IMAGE ?= postal-digits
VARIANT ?= cpu
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
MODEL ?= digits
SERVING_LOCK := serving/requirements$(if $(wildcard .venv/.gpu),-gpu).lock
CONTAINERS ?= $(firstword $(shell docker info >/dev/null 2>&1 && command -v docker; command -v podman buildah))
PROTOC := build/protoc-venv
# Writes the stubs to the directory $(1). They are part of two packages, serving and the client's wheel, so they import each
# other relatively, and messages take the name of the module that they are in.
define generate
	@mkdir -p $(1)
	$(PROTOC)/bin/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) \
		$(wildcard protos/*/*.proto protos/*/*/*.proto)
	@find $(1) -name '*_pb2*.py' -exec sed -i.bak -E -e 's/^(from [a-z0-9_.]+ )?import ([a-z_]+_pb2) as/from . import \2 as/' \
		-e "s/(BuildTopDescriptorsAndMessages\(DESCRIPTOR, )'[^']*'/\1__name__/" {} +
	@find $(1) -name '*.bak' -delete
endef
COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --quiet --generate-hashes --no-emit-index-url --no-header \
	--no-annotate
LOCK = $(COMPILE) pyproject.toml --group build

.PHONY: help install install-gpu serve train test test-slow prove node-client check bench bench-peers bench-export bench-drift capacity loop overload faults soak fuzz harm lint types protos client lock format readme samples dashboards image clean

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/.everything ## install serving, training and the development tools into .venv

install-gpu: .venv/.serving ## have `make serve` run on CUDA: replace the CPU build of ONNX Runtime by the GPU build
	$(PIP) uninstall --yes onnxruntime
	$(PIP) install --require-hashes -r serving/requirements-gpu.lock
	@touch .venv/.gpu

# `make serve` serves ./models once a version there accepts digits. A run record says if its version does.
TRAINED = $(wildcard models/digits/*/model.onnx)
IDLE = $(patsubst %run.json,%model.onnx,$(shell grep -sl '"accepts_by_default": false' models/digits/*/run.json))
MODELS ?= $(if $(filter-out $(IDLE),$(TRAINED)),models)

serve: .venv/.serving ## serve the newest model: ./models if `make train` made one that accepts digits, else the bundled one [MODELS=models GRPC_PORT=8001 METRICS_PORT=8002]
	$(if $(MODELS),,$(if $(TRAINED),@echo 'no version in models/digits accepts digits: serving the bundled models; MODELS=models serves them anyway'))
	@exec $(BIN)/digits serve $(if $(MODELS),--models $(MODELS)) \
		$(if $(GRPC_PORT),--grpc-port $(GRPC_PORT)) $(if $(METRICS_PORT),--metrics-port $(METRICS_PORT))

train: .venv/.everything ## train, export and verify a new model version in ./models [RECIPE=folded HOLD_OUT=10000 DIGITS_DATA=mnist.npz]
	$(BIN)/digits-train run $(RECIPE) --hold-out $(HOLD_OUT) --models models

test: .venv/.everything ## run the tests in parallel, except those of test-slow, prove and harm [WORKERS=auto]
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -rs -m 'not slow and not deploy and not harm'

test-slow: .venv/.everything ## run the tests that train larger networks
	$(BIN)/pytest -rs -m slow

prove: .venv/.everything ## test the deployment with real components: image, pods, Envoy, Prometheus, alerts; report the gaps
	$(BIN)/pytest tests/deploy

node-client: ## install Node's gRPC client into build/node, for `make prove`
	@mkdir -p build/node && cp tests/deploy/node/package*.json build/node
	npm ci --prefix build/node --ignore-scripts --no-audit --no-fund

check: lint types test ## run the checks that a change must pass

lint: .venv/.everything $(PROTOC)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint protos
	@rm -rf build/stubs
	$(call generate,build/stubs)
	@diff -r --exclude=__pycache__ build/stubs serving/pb || { echo 'stubs differ from protos/: make protos'; exit 1; }

types: .venv/.everything
	$(BIN)/mypy

bench: .venv/.everything ## measure the service beside ONNX Runtime and gRPC alone, or beside another checkout [MODEL=digits OTHER=../before]
	$(BIN)/python -m tests.benchmarks.$(if $(OTHER),sidebyside --other $(OTHER),throughput --model $(MODEL))

bench-peers: .venv/.everything ## measure the service beside other model servers, each installed into build/peers (2.5 GB)
	$(BIN)/python -m tests.benchmarks.peers.comparison

bench-export: .venv/.everything ## measure exported models beside one built by hand, and int8 beside fp32
	$(BIN)/python -m tests.benchmarks.export

bench-drift: .venv/.everything ## measure the cost of drift detection in a call
	$(BIN)/python -m tests.benchmarks.drift

capacity: .venv/.everything ## measure a replica, and simulate how many pods a load needs: the tables of deploy/CAPACITY.md
	$(BIN)/python -m tests.benchmarks.capacity

loop: .venv/.everything ## learn from captured mail, compare, roll out: the whole loop once [DIGITS_DATA=mnist.npz]
	$(BIN)/python -m tests.benchmarks.loop

overload: .venv/.everything ## send three times the calls that the service can answer, and count their outcomes
	$(BIN)/python -m tests.benchmarks.overload

faults: .venv/.everything ## kill a worker, break a model file, stop the service; count the outcomes of calls meanwhile
	$(BIN)/python -m tests.benchmarks.faults

soak: .venv/.everything ## send every kind of call at once; memory and open files must not grow [MINUTES=10]
	$(BIN)/python -m tests.benchmarks.soak $(MINUTES)

fuzz: .venv/.everything ## send malformed requests to the tensor API, and broken HTTP/2 to the front [SECONDS=30]
	$(BIN)/python -m tests.fuzz.tensors $(SECONDS)
	$(BIN)/python -m tests.fuzz.http2 $(SECONDS)

harm: .venv/.everything ## attack a running service beside a polite caller, in over a hundred ways; or compare with another checkout [FRONT=http2 OTHER=../before]
	$(if $(OTHER),$(BIN)/python -m tests.robustness.table --other $(OTHER) $(if $(FRONT),--front $(FRONT)),$(BIN)/pytest -rs -m harm $(if $(FRONT),-k '[$(FRONT)-') tests/robustness)

protos: $(PROTOC)/.installed ## generate the gRPC stubs from protos/
	rm -rf serving/pb
	$(call generate,serving/pb)

client: .venv/.everything ## build the Python client, a wheel of its own, into dist/
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist ./serving/client
	@ls -l dist/postal_digits_client-$(VERSION)-*.whl

lock: .venv/.everything ## lock the newest versions of all dependencies
	$(LOCK) --upgrade --extra training --extra dev --output-file tests/requirements.lock
	$(LOCK) --constraint tests/requirements.lock --extra tracing --extra capture --output-file serving/requirements.lock
	$(LOCK) --constraint tests/requirements.lock --extra tracing --extra capture --extra gpu --no-emit-package onnxruntime --output-file serving/requirements-gpu.lock
	$(COMPILE) --upgrade --group protos --output-file protos/requirements.lock

format: .venv/.everything ## format the code and mend what the linter can
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

readme: .venv/.everything ## write the tables of settings and metrics in serving/README.md
	$(BIN)/python -m serving.readme_tables

samples: .venv/.everything ## draw the samples again: digits, a photo and a field
	$(BIN)/python -m serving.samples.draw

dashboards: .venv/.everything ## write the Grafana dashboard and the PrometheusRule from their sources
	$(BIN)/python -m deploy.generate

image: ## build the container image of the service [IMAGE=postal-digits VARIANT=cpu|gpu CONTAINERS=podman BUILD_FLAGS=...]
	$(if $(filter cpu gpu,$(VARIANT)),,$(error VARIANT is '$(VARIANT)', expected cpu or gpu))
	$(if $(CONTAINERS),,$(error docker, podman or buildah is needed to build the image))
	$(CONTAINERS) build $(if $(filter docker,$(notdir $(CONTAINERS))),,--format docker) --file deploy/docker/Dockerfile \
		--build-arg VARIANT=$(VARIANT) --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--label org.opencontainers.image.created=$$(git log -1 --format=%cI) $(BUILD_FLAGS) \
		--tag $(IMAGE):$(VERSION)$(if $(filter gpu,$(VARIANT)),-gpu) .

clean: ## remove all files that the verbs made, except trained models
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv

.venv/.serving: $(SERVING_LOCK) pyproject.toml | .venv/bin/python
	$(PIP) install --require-hashes -r $(SERVING_LOCK)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.everything: tests/requirements.lock .venv/.serving
	@test ! -e .venv/.gpu || { echo 'this .venv serves on CUDA: use another checkout, or `make clean` first'; exit 1; }
	$(PIP) install --require-hashes -r tests/requirements.lock
	@touch $@

$(PROTOC)/.installed: protos/requirements.lock | .venv/bin/python
	rm -rf $(PROTOC)
	$(BIN)/python -m venv $(PROTOC)
	$(PROTOC)/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r protos/requirements.lock
	@touch $@
