# make demo   burn in this machine, then a simulated tranche with planted faults
# make test   the tests            make lint   format, clippy, licences
# make bench  ratio tables         make build, and its parts: kernels, local (Kubernetes), helm
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test lint bench build kernels local helm packages

BIN := target/debug
SEED ?= 7
BLADES ?= 16
RUNS ?= runs

demo: build
	@$(BIN)/whet-sim demo --whet $(BIN)/whet --libs target/sim --seed $(SEED) --blades $(BLADES) --out $(RUNS)

test: build helm
	@bash deploy/local/test.sh
	@cargo test --workspace --quiet

lint:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --log-level error check licenses bans sources; \
	 else echo "licences: checked by 'make test'; cargo-deny would look closer (cargo install cargo-deny)"; fi

bench: build
	@bash tests/bench/run.sh

build: packages kernels local
	@cargo build --workspace --quiet
	@ln -sf whet $(BIN)/kubectl-whet
	@$(BIN)/whet-sim libs --dir target/sim

kernels: packages
	@bash burnin/device/kernels/build.sh

# A real Kubernetes of one binary, from Go modules.
local:
	@bash deploy/local/build.sh

helm:
	@bash deploy/helm/build.sh

packages:
	@bash tests/setup/packages.sh "the build" build-essential pkg-config
	@bash tests/setup/packages.sh "the store (tests)" postgresql
	@bash tests/setup/packages.sh "dashboards and alerts (tests)" prometheus
	@bash tests/setup/packages.sh "the report's look in a browser (tests)" chromium
