#!/usr/bin/env bash
# Measures the host tests beside their peers, in turns in one run, and writes docs/benchmarks/host-<date>.{md,txt}.
# Needs: python3 with venv, gcc, stressapptest, stress-ng (Debian packages of those names); numpy comes from PyPI.
# usage: tests/bench/host.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-7}
target=${CARGO_TARGET_DIR:-target}
for tool in gcc python3 stressapptest stress-ng; do
    command -v "$tool" >/dev/null || { echo "host.sh: $tool is missing: apt-get install $tool" >&2; exit 1; }
done
cargo build --release --quiet -p whetstone-device --example host_bench
venv=$target/bench-venv
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/python" -c 'import numpy, threadpoolctl' 2>/dev/null || "$venv/bin/pip" install --quiet numpy threadpoolctl
gcc -O3 -march=native -pthread -o "$target/host_stream" tests/bench/host_stream.c
# A type set for older builds of OpenBLAS slows a current one down: it shall choose its own kernel.
unset OPENBLAS_CORETYPE OPENBLAS_L2_SIZE
exec "$venv/bin/python" tests/bench/host.py --rounds "$rounds" --ours "$target/release/examples/host_bench" \
    --stream "$target/host_stream" --out docs/benchmarks
