# The table of contents: every task of the house is a target here.
.PHONY: help demo test lint format bench-cpu bench-gateway bench-report crds manifests docs dashboards version env e2e images \
  cluster-build cluster-up cluster-down clean
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
STAMP := $(VENV)/.installed
CLUSTERCTL := PYTHONPATH=e2e $(BIN)/python -m cluster
# `make test WORKERS=2` tests in two processes, TESTS="tests/gateway ..." only these.
# `make e2e CLUSTER=current` takes the cluster of $KUBECONFIG, with the images that the chart names (REGISTRY and TAG say
# others) and values of the chart from VALUES=FILE;
# IMAGES=full runs engines from their image, IMAGES=node from the repository, mounted from the node.
# SCENARIOS="e2e/test_serving.py ..." runs only these.
CLUSTER ?= own
IMAGES ?=
VERSION ?=
SCENARIOS ?= e2e
REGISTRY ?=
TAG ?=
TESTS ?=
VALUES ?=
WORKERS ?=

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 15

env: $(STAMP) ## create .venv with everything installed

$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Quire needs Python 3.11 or newer; say which one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -m venv .uv || \
	  { echo "This Python cannot make environments. On Debian: apt-get install python3-venv" >&2; rm -rf .uv; exit 2; }
	.uv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# Where Python is told to write no bytecode, each process would compile all that it imports.
$(STAMP): pyproject.toml constraints.txt | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --python $(BIN)/python -c constraints.txt --build-constraints constraints.txt -e '.[dev]' \
	  $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode)
	@touch $@

demo: $(STAMP) ## quire-tiny on two replicas, asked through the gateway
	$(BIN)/quire demo

test: $(STAMP) ## every test; WORKERS=2 takes two processes and half the time
	$(BIN)/pytest $(if $(WORKERS),--numprocesses=$(WORKERS) --dist=loadgroup --no-loadscope-reorder) $(TESTS)

lint: $(STAMP) ## ruff, mypy, import rules, stale generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m quire_api.crd --check crds
	PYTHONPATH=charts $(BIN)/python -m dashboards --check charts/quire/monitoring
	$(BIN)/python charts/plain.py --check
	$(BIN)/python charts/release.py --check

format: $(STAMP) ## let ruff format and sort
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench-cpu: $(STAMP) ## our engine beside Transformers generate on this machine
	$(BIN)/python bench/cpu.py

bench-report: $(STAMP) ## the page and the plot of the readings on a GPU
	$(BIN)/python bench/report.py

bench-gateway: $(STAMP) ## the gateway beside its rivals: simulations, overhead, chaos
	PYTHONPATH=bench $(BIN)/python -m gateway_bench all

manifests: $(STAMP) ## write manifests/quire.yaml from the chart, for those without Helm
	$(BIN)/python charts/plain.py --write

crds: $(STAMP) ## write crds/ from the pydantic models
	$(BIN)/python -m quire_api.crd --write crds
	cp crds/llmdeployments.yaml charts/quire/files/

docs: $(STAMP) ## write the pages of docs/ that come from the code
	$(BIN)/python -m quire.reference docs

version: $(STAMP) ## give packages, chart, images and docs another version: make version VERSION=0.3.0
	$(BIN)/python charts/release.py --write '$(VERSION)'
	$(BIN)/python charts/plain.py --write
	QUIRE_WRITE_GOLDEN=1 $(BIN)/pytest --quiet tests/charts

dashboards: $(STAMP) ## write the chart's Grafana dashboards from their description
	PYTHONPATH=charts $(BIN)/python -m dashboards --write charts/quire/monitoring

e2e: $(if $(filter own,$(CLUSTER)),.quire/bin/.built) $(STAMP) ## Quire installed by Helm on a real node, and everything that may happen to it
	QUIRE_E2E_CLUSTER=$(CLUSTER) QUIRE_E2E_IMAGES=$(IMAGES) QUIRE_E2E_REGISTRY=$(REGISTRY) QUIRE_E2E_TAG=$(TAG) \
	  QUIRE_E2E_VALUES=$(VALUES) $(BIN)/pytest $(SCENARIOS)

images: $(STAMP) ## Quire's images, built by buildah without a network; IMAGES=full builds the engine's too
	$(CLUSTERCTL) images $(if $(filter full,$(IMAGES)),--runtime --record bench/results/images.json)

cluster-build: .quire/bin/.built ## Kubernetes and its tools from Go modules: minutes the first time, seconds after

cluster-up: .quire/bin/.built $(STAMP) ## a real one-node Kubernetes in a network namespace
	$(CLUSTERCTL) up

cluster-down: $(STAMP) ## take it down; nothing is left behind
	$(CLUSTERCTL) down

.quire/bin/.built: $(wildcard e2e/cluster/go/*/go.sum e2e/cluster/go/*/*.go) | $(STAMP)
	$(CLUSTERCTL) build
	@touch $@

clean: ## remove the environment and caches
	rm -rf .venv .uv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .quire
