#!/bin/sh
# Lines per second of `whet classify` beside `grep -E` of the same lines, in one run.
#
#   tests/bench/classify.sh WHET [OUT.tsv]
#
# WHET: the release binary. OUT.tsv gets one row per measurement (tool, run, lines, bytes, seconds, CPU seconds).
# LINES (default 1000000) and RUNS (default 5) may be set in the environment. The log is composed from a seed: an
# ordinary boot's messages and one fault in a thousand lines. Each tool reads it from the page cache and writes to a
# file; rates and ratio are of median CPU time, which other work on the machine disturbs least.
set -eu

whet=${1:?usage: classify.sh WHET [OUT.tsv]}
out=${2:-/dev/null}
lines=${LINES:-1000000}
runs=${RUNS:-5}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT INT TERM

# What a person would type to find the same sorts of faults; it tells neither code, device nor action.
pattern='NVRM: Xid|SXid|fallen off the bus|mlx5_core.*(Will cause a leak|health compromised|unrecoverable|insufficient power|Port module event)|PCIe Bus Error|AER: .*error|Machine Check|\[Hardware Error\]|EDAC .*(CE|UE) |oom-killer|Killed process|blocked for more than|soft lockup|nvme.*(timeout|reset failure|is down)|I/O error|filesystem read-only|Disk failure|nfs: server|Kernel panic|libnccl'

awk -v lines="$lines" 'BEGIN {
    srand(7)
    n = split("systemd[1]: Started Journal Service.|" \
        "usb 1-1.6: New USB device found, idVendor=046b, idProduct=ff01, bcdDevice= 1.00|" \
        "ata5: SATA link down (SStatus 0 SControl 300)|" \
        "EXT4-fs (nvme0n1p2): re-mounted. Opts: (null). Quota mode: none.|" \
        "mlx5_core 0000:41:00.0: firmware version: 28.39.1002|" \
        "IPv6: ADDRCONF(NETDEV_CHANGE): eth0: link becomes ready|" \
        "audit: type=1400 audit(1753325642.544:115): apparmor=\"STATUS\" operation=\"profile_replace\" profile=\"unconfined\" pid=5795 comm=\"apparmor_parser\"|" \
        "EDAC MC: UMC3 chip selects:|" \
        "perf: interrupt took too long (3141 > 3136), lowering kernel.perf_event_max_sample_rate to 63500|" \
        "nvidia-nvlink: Nvlink Core is being initialized, major device number 507", ordinary, "|")
    m = split("NVRM: Xid (PCI:0000:3b:00): 79, pid=4711, name=python3, GPU has fallen off the bus.|" \
        "NVRM: Xid (PCI:0008:01:00): 149, NETIR_LINK_EVT Fatal XC0 i0 Link 08 (0x004505c6 0x00000000 0x00000000 0x00000000)|" \
        "nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): 24007, Fatal, Link 28 sourcetrack timeout error (First)|" \
        "mlx5_core 0000:12:00.0: Port module event[error]: module 0, Cable error, High Temperature|" \
        "Out of memory: Killed process 4711 (python3) total-vm:1kB, anon-rss:1kB, file-rss:0kB", fault, "|")
    for (i = 0; i < lines; i++) {
        text = i % 1000 == 999 ? fault[int(rand() * m) + 1] : ordinary[int(rand() * n) + 1]
        printf "<6>[%5d.%06d] %s\n", i / 100, (i * 37) % 1000000, text
    }
}' > "$dir/log"
bytes=$(wc -c < "$dir/log")
cat "$dir/log" > /dev/null

# Seconds and CPU seconds of one run. Both tools end with a code of their own when they found something.
measure() {
    start=$(date +%s%N)
    "$@" > "$dir/out" || [ $? -le 10 ]
    end=$(date +%s%N)
    # `times` of this subshell: its second line is what its children used, as 0m0.250s 0m0.030s.
    times > "$dir/times"
    awk -v ns="$((end - start))" 'NR == 2 { gsub("s", ""); split($1 "m" $2, t, "m")
        printf "%.6f\t%.3f", ns / 1e9, t[1] * 60 + t[2] + t[3] * 60 + t[4] }' "$dir/times"
}

printf 'tool\trun\tlines\tbytes\tseconds\tcpu_seconds\n' > "$dir/raw"
for run in $(seq "$runs"); do
    for tool in whet-json whet-table grep-lines grep-count; do
        case $tool in
            whet-json) t=$(measure "$whet" classify --json "$dir/log") ;;
            whet-table) t=$(measure "$whet" classify "$dir/log") ;;
            grep-lines) t=$(measure grep -E "$pattern" "$dir/log") ;;
            grep-count) t=$(measure env LC_ALL=C grep -aEc "$pattern" "$dir/log") ;;
        esac
        printf '%s\t%s\t%s\t%s\t%s\n' "$tool" "$run" "$lines" "$bytes" "$t" >> "$dir/raw"
    done
done

awk -F'\t' 'NR > 1 { n[$1]++; wall[$1, n[$1]] = $5; t[$1, n[$1]] = $6; lines = $3 }
    function median(tool,   i, j, v, k) {
        k = n[tool]
        for (i = 1; i <= k; i++) v[i] = t[tool, i] + 0
        for (i = 1; i <= k; i++) for (j = i + 1; j <= k; j++) if (v[j] < v[i]) { s = v[i]; v[i] = v[j]; v[j] = s }
        return v[int((k + 1) / 2)]
    }
    END {
        split("whet-json whet-table grep-lines grep-count", order, " ")
        base = median("grep-lines")
        printf "%-12s %12s %14s %s\n", "tool", "CPU seconds", "lines/s", "ratio to grep -E (lines/s)"
        for (i = 1; i <= 4; i++) {
            m = median(order[i])
            printf "%-12s %12.3f %14.0f %.2f\n", order[i], m, lines / m, base / m
        }
    }' "$dir/raw"
[ "$out" = /dev/null ] || cp "$dir/raw" "$out"
