#!/usr/bin/env bash
# `make bench`: every measurement beside its peer, in one run; raw data and tables go to docs/benchmarks.
#   tests/bench/run.sh [classifier|agent|host|judge|site|fleet]...      all by default; by estimate 45 minutes, and the release build
set -euo pipefail
cd "$(dirname "$0")/../.."
what=${*:-classifier agent host judge site fleet}
bash tests/setup/packages.sh "the benchmarks" python3 python3-venv gcc stressapptest stress-ng bc
echo "building for release" >&2
cargo build --release --quiet -p whet -p whetstone-agent -p whetstone-operator -p whetstone-sim-fleet
cargo build --release --quiet -p whetstone-operator --example bare_patches
cargo build --quiet -p whetstone-scenario --bins
target/debug/whet-sim libs --dir target/sim
for one in $what; do
    echo "== $one" >&2
    case $one in
        classifier) sh tests/bench/classify.sh target/release/whet docs/benchmarks/classifier.tsv ;;
        agent) bash tests/bench/agent.sh target/release/whetstone-agent target/debug/whet-sim target/sim docs/benchmarks/agent.tsv ;;
        host) bash tests/bench/host.sh ;;
        judge) cargo run --release --quiet -p whetstone-burnin --example fleet_table -- 6000 docs/benchmarks/fleet-judge.jsonl ;;
        site) bash tests/bench/site.sh target/debug/whet target/sim docs/benchmarks/site-up.tsv ;;
        fleet) python3 tests/bench/site.py target/release target/local/bin docs/benchmarks/fleet.jsonl ;;
        *) echo "unknown benchmark $one: classifier, agent, host, judge, site, fleet" >&2; exit 2 ;;
    esac
done
