#!/usr/bin/env bash
# Builds helm from its Go module into a folder (default target/local/bin of this repository), and does nothing where it
# is there already, of this very version. Takes about three minutes of processor time the first time.
#   build.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${1:-$root/target/local/bin}

mkdir -p "$bin"
exec 9>"$bin/.helm.lock"
# Two builds at once would each write the same file.
flock 9

# By content, not by time: a fresh clone has new times.
stamp=$({
    go version
    cd "$here"
    LC_ALL=C sha256sum build.sh go.mod go.sum
} | sha256sum | cut -d' ' -f1)
if [ "$(cat "$bin/.helm.stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$bin/helm" ]; then
    exit 0
fi
rm -f "$bin/.helm.stamp"

echo "building helm (minutes the first time)" >&2
cd "$here"
version=$(go list -m -f '{{.Version}}' helm.sh/helm/v4)
# -mod=readonly: what is built is what go.sum names.
CGO_ENABLED=0 nice -n 5 go build -mod=readonly -trimpath \
    -ldflags "-s -w -X helm.sh/helm/v4/internal/version.version=$version" \
    -o "$bin/.helm.new" helm.sh/helm/v4/cmd/helm
mv "$bin/.helm.new" "$bin/helm"
echo "$stamp" >"$bin/.helm.stamp"
