# make demo   burn in this machine, then a simulated tranche with planted faults
# make test   the tests            make lint   format, clippy, licences
# make bench  ratio tables         make kernels / make build: the parts of it
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: demo test lint bench build kernels packages clean-runs

BIN := target/debug
SEED ?= 7
BLADES ?= 16
RUNS ?= runs

demo: build
	@$(BIN)/whet-sim demo --whet $(BIN)/whet --libs target/sim --seed $(SEED) --blades $(BLADES) --out $(RUNS)

test: build
	@cargo test --workspace --quiet

lint:
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets --quiet -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny --log-level error check licenses bans sources; \
	 else echo "licences: checked by 'make test'; cargo-deny would look closer (cargo install cargo-deny)"; fi

bench: build
	@bash tests/bench/run.sh

build: packages kernels
	@cargo build --workspace --quiet
	@$(BIN)/whet-sim libs --dir target/sim

kernels: packages
	@bash burnin/device/kernels/build.sh

packages:
	@bash tests/setup/packages.sh "the build" build-essential pkg-config
	@bash tests/setup/packages.sh "the report's look in a browser (tests)" chromium
