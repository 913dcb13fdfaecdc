# `make` lists the targets.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
VENV := tests/.venv
# The build that the tests run against: with debug assertions, and without a second, slow build.
export WS_CLUSTER_BIN ?= $(abspath $(TARGET_DIR))/debug/ws-cluster

PREFIX ?= /usr/local

FUZZ_SECONDS ?= 60
ROUNDS ?= 5
SOAK_SECONDS ?= 600
SEED_SECONDS ?= 120
SIM_RUNS ?= 300
SOAK_CONNECTIONS ?= 1000
API_EXAMPLES ?= 1000
SWAGGER_UI := 5.35.0

.PHONY: help build install deb fmt lint python-env check test \
        sim bench side-by-side chromium million scaling cluster-bench request-bench ops-bench reload-bench drain-bench \
        coalesce-bench criterion \
        soak openapi docs \
        api-check swagger-ui pictures fuzz fuzz-short clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

build: ## the release binaries: the server, loadtest, bench
	cargo build --release --workspace

install: build ## the program, its units and its pages, to $(DESTDIR)$(PREFIX) (PREFIX=/usr/local)
	systemd/install.sh $(TARGET_DIR)/release/ws-cluster "$(DESTDIR)" "$(PREFIX)"

deb: build ## the Debian package, in target/debian
	systemd/deb.sh $(TARGET_DIR)/release/ws-cluster

fmt: ## format the code
	cargo fmt --all

lint: ## formatting and clippy, nothing is changed
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

python-env: $(VENV)/.done ## the Python environment of the tests, in tests/.venv

$(VENV)/.done: tests/requirements.txt
	tests/python-env.sh $(VENV) tests/requirements.txt
	touch $@

check: lint ## the short tests, in two minutes: lint, unit tests, rules of the house, simulator
	cargo test --workspace --lib --bins
	cargo test --test tidy
	SIM_SEED=1 SIM_RUNS=10 cargo test --test sim

test: ## everything a change must pass: lint, Rust, Python and Node tests
	@tests/run.sh

bench: ## what the kernel alone allows here: the bare loops, and how often a core stands still
	cargo build --release -p bench
	$(TARGET_DIR)/release/bench bare-send $(BENCH_ARGS)
	$(TARGET_DIR)/release/bench bare-send --ring $(BENCH_ARGS)
	$(TARGET_DIR)/release/bench bare-send --connections 50
	$(TARGET_DIR)/release/bench stalls

side-by-side: build ## server and bare loop in turn on the same cores (ROUNDS=5)
	bench/side_by_side.py --rounds $(ROUNDS)

chromium: ## Chromium, where it is missing (Debian, as root)
	tests/chromium.sh

million: build chromium ## a million connections in one process: figures, docs/million.html (12 minutes, 12 GiB)
	bench/million.py --report docs/million.html --picture docs/million.png \
	    --json $(TARGET_DIR)/million.json $(MILLION_ARGS)

scaling: build ## the same figures from ten thousand to a million connections, docs/scaling.svg
	bench/scaling.py $(SCALING_ARGS)

cluster-bench: build ## two nodes on a Redis, beside one node and Redis alone; the broker (ROUNDS=5)
	bench/cluster.py --rounds $(ROUNDS)

request-bench: build ## requests to business servers and events of a storm, with and without Redis (ROUNDS=5)
	bench/requests.py --rounds $(ROUNDS)

ops-bench: build ## what a scrape and a profile cost the fan-out, in alternating runs (ROUNDS=12)
	bench/ops.py --rounds $(if $(filter 5,$(ROUNDS)),12,$(ROUNDS))

drain-bench: build python-env ## connects at a second node while one with 15,000 clients drains
	$(VENV)/bin/python bench/drain.py --server $(TARGET_DIR)/release/ws-cluster

reload-bench: build python-env ## what reloads of 10,000 projects cost a node under load: pauses, refusals, time
	$(VENV)/bin/python bench/reload.py $(RELOAD_ARGS)

coalesce-bench: build ## the fan-out with --coalesce_us 0 to 2000; draws docs/coalesce.svg (ROUNDS=5)
	bench/coalesce.py --rounds $(ROUNDS)

criterion: ## frames, signatures, envelopes, matching and the hop between workers, beside their bounds
	bench/parts.py

soak: build ## tests with new seeds for SEED_SECONDS=120, then a server under load for SOAK_SECONDS=600
	tests/seeds.sh $(SEED_SECONDS)
	tests/soak.sh $(TARGET_DIR)/release $(SOAK_SECONDS) $(SOAK_CONNECTIONS)

sim: ## the simulator with SIM_RUNS=300 new seeds for each of its tests
	SIM_RUNS=$(SIM_RUNS) cargo test --release --test sim -- --nocapture

openapi: ## docs/openapi.yaml anew, from the code
	RENEW_OPENAPI=1 cargo test --lib ops::openapi

docs: ## the tables of flags and metrics in docs/ anew, from the code
	RENEW_DOCS=1 cargo test --lib the_page_has_what_the_table_says -- --test-threads 1

api-check: python-env ## the HTTP API against its description, API_EXAMPLES=1000 a path, at random
	cargo build
	API_EXAMPLES=$(API_EXAMPLES) $(VENV)/bin/python -m pytest -s tests/python/test_openapi.py

swagger-ui: ## the files of Swagger UI anew, from npm's swagger-ui-dist
	src/ops/pages/assets/swagger/renew.sh $(SWAGGER_UI)

pictures: python-env ## the pictures of docs/ anew, in a browser, from five minutes of load
	cargo build
	WS_CLUSTER_PICTURES=docs $(VENV)/bin/python -m pytest -q tests/python/test_live.py \
	    -k "charts_move or in_the_console"

fuzz: ## every fuzz target for FUZZ_SECONDS=60 (cargo-fuzz and a nightly compiler)
	tests/fuzz.sh $(FUZZ_SECONDS)

fuzz-short: ## every fuzz target for 5 seconds
	tests/fuzz.sh 5

clean: ## remove what was built
	cargo clean
	rm -rf $(VENV)
