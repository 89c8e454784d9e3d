#!/usr/bin/env bash
# Memory and CPU of the agent in watch mode on a simulated blade with 8 GPUs, each looked at every ten seconds.
#   tests/bench/agent.sh AGENT WHET_SIM SIM_LIBRARIES [OUT.tsv]      SECONDS_WATCHED=300 sets how long
# One row: seconds watched, resident memory now and at its highest (KiB), CPU seconds, percent of one core. The first
# look, which reads everything and loads the library, is in the memory but not in the CPU time.
set -euo pipefail
agent=${1:?agent} sim=${2:?whet-sim} libraries=$(realpath "${3:?simulated libraries}") out=${4:-/dev/null}
watched=${SECONDS_WATCHED:-300}
dir=$(mktemp -d)
trap 'kill "$pid" 2>/dev/null || true; rm -rf "$dir"' EXIT
printf 'name = "b-001"\nsku = "h100"\n' >"$dir/scenario.toml"
"$sim" blade --scenario "$dir/scenario.toml" --out "$dir/blade" >/dev/null

LD_LIBRARY_PATH=$libraries WHETSTONE_SIM=$dir/blade \
    "$agent" watch --interval 10s --root "$dir/blade/root" --kmsg "$dir/blade/kmsg" >"$dir/out" 2>&1 &
pid=$!
hertz=$(getconf CLK_TCK)
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$pid/stat"; }   # utime + stime, past the name
memory() { awk -v key="$1:" '$1 == key { print $2 }' "/proc/$pid/status"; }
sleep 15
before=$(ticks)
sleep "$watched"
after=$(ticks)
row=$(awk -v s="$watched" -v rss="$(memory VmRSS)" -v hwm="$(memory VmHWM)" -v t="$((after - before))" -v hz="$hertz" \
    'BEGIN { printf "%d\t%d\t%d\t%.2f\t%.3f", s, rss, hwm, t / hz, 100 * t / hz / s }')
printf 'seconds\trss_kib\trss_peak_kib\tcpu_s\tcore_percent\n%s\n' "$row" | tee "$out"
