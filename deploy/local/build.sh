#!/usr/bin/env bash
# Builds the local Kubernetes into a folder (default target/local/bin of this repository), and does nothing where it is
# there already, of these very sources. Takes about five minutes of processor time the first time.
#   build.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${1:-$root/target/local/bin}

bash "$root/tests/setup/packages.sh" "the local Kubernetes" \
    containerd runc containernetworking-plugins iptables nftables conntrack iproute2 util-linux

mkdir -p "$bin"
exec 9>"$bin/.lock"
# Two builds at once would each write the same files.
flock 9

# By content, not by time: a fresh clone has new times.
stamp=$({
    go version
    cd "$here"
    find . -type f \( -name '*.go' -o -name 'go.mod' -o -name 'go.sum' -o -name 'build.sh' \) ! -name '*_test.go' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum
} | sha256sum | cut -d' ' -f1)
programs=(etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl whet-local whet-gpu-plugin whet-node-init)
if [ "$(cat "$bin/.stamp" 2>/dev/null)" = "$stamp" ] && [ -x "$bin/kube" ] && [ -x "$bin/coredns" ] && [ -x "$bin/pause" ] &&
    [ -x "$bin/smoke" ] && [ -x "$bin/whet-local" ]; then
    exit 0
fi
rm -f "$bin/.stamp"

echo "building the local Kubernetes (minutes the first time)" >&2
export CGO_ENABLED=0
# The version that the servers report: without it charts that check it refuse.
version=$(cd "$here" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
minor=${version#v1.}
minor=${minor%%.*}
stamped=()
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamped+=(-X "$package.gitVersion=$version" -X "$package.gitMajor=1" -X "$package.gitMinor=$minor")
done
build() { # FOLDER PACKAGE NAME: renamed into place, so that a running cluster keeps its file
    (cd "$1" && nice -n 5 go build -trimpath -ldflags "-s -w ${stamped[*]}" -o "$bin/.$3.new" "$2")
    mv "$bin/.$3.new" "$bin/$3"
}
build "$here" ./pause pause
build "$here" ./smoke smoke
build "$here/coredns" . coredns
build "$here" . kube
for program in "${programs[@]}"; do
    ln -sfn kube "$bin/$program"
done
echo "$stamp" >"$bin/.stamp"
