#!/usr/bin/env bash
# Format, vet and tests of the local Kubernetes' own code, seconds once it has been built; then, as root, a real cluster
# (smoke.sh), a minute.
set -euo pipefail
cd "$(dirname "$0")"
# As build.sh has it, so that both share what the compiler has cached.
export CGO_ENABLED=0
for module in . coredns; do
    unformatted=$(gofmt -l "$module")
    [ -z "$unformatted" ] || { echo "not formatted: $unformatted" >&2; exit 1; }
    (cd "$module" && nice -n 5 go vet -trimpath ./... && nice -n 5 go test -trimpath ./...)
done
if [ "$(id -u)" -eq 0 ]; then
    bash smoke.sh
else
    echo "smoke.sh (nodes, a pulled cable, a killed etcd, nothing left behind) needs root: left out" >&2
fi
