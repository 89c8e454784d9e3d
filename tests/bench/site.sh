#!/usr/bin/env bash
# How long `whet site up` takes from nothing (programs built) to blades that kubectl shows, and what the whole site weighs.
#   site.sh WHET LIBRARIES OUT.tsv [RUNS]
set -euo pipefail
whet=$1 libraries=$2 out=$3 runs=${4:-5}
printf 'run\tseconds_to_blades\tsite_mib\n' >"$out"
dir=
# ext4 passes over inodes that were freed minutes ago, one by one, whenever it looks for a free one: the trees of the
# blades of a run stay until the last one has ended, else each run but the first measures that.
kept=$(mktemp -d)
trap '[ -z "$dir" ] || "$whet" site down --dir "$dir" >/dev/null 2>&1 || true; rm -rf "$kept"' EXIT
for run in $(seq "$runs"); do
    dir=$(mktemp -d)/site
    begun=$(date +%s.%N)
    "$whet" site up --dir "$dir" --blades 8 --healthy --sim-libs "$libraries" --json >/dev/null 2>&1
    "$whet" blades --json --kubeconfig "$dir/admin.kubeconfig" >/dev/null
    seconds=$(echo "$(date +%s.%N) - $begun" | bc)
    mib=$("$whet" site status --dir "$dir" --json | python3 -c 'import json,sys; print(round(json.load(sys.stdin)["pss_bytes"]/2**20))')
    mkdir "$kept/$run"
    mv "$dir"/blades/* "$kept/$run/"
    "$whet" site down --dir "$dir" >/dev/null 2>&1
    rmdir "$(dirname "$dir")" 2>/dev/null || true
    printf '%s\t%.2f\t%s\n' "$run" "$seconds" "$mib" | tee -a "$out"
done
