#!/usr/bin/env bash
# Shows on this machine, as root, that the local Kubernetes is one: two nodes, a pod with a GPU that finds another by
# name, a node that crashes, a cable that is pulled, a control plane that is killed, and nothing left at the end.
#   smoke.sh [INSTANCE]     (default: the last one that is free, so that it does not meet a site that runs)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=${WHETSTONE_LOCAL_BIN:-$root/target/local/bin}
instance=${1:-}
[ "$bin" != "$root/target/local/bin" ] || bash "$here/build.sh"

scratch=$(mktemp -d)
dir=$scratch/cluster
passed=0
local_() { "$bin/whet-local" "$@" --dir "$dir"; }
kubectl() { "$bin/kubectl" --kubeconfig "$dir/admin.kubeconfig" "$@"; }
fail() {
    echo "FAILED: $*" >&2
    tail -n 5 "$dir"/log/*.log >&2 2>/dev/null || true
    exit 1
}
ok() {
    passed=$((passed + 1))
    echo "ok $passed - $*"
}
# until_ LIMIT_SECONDS WHAT COMMAND...: runs the command until it succeeds, and says how long that took
until_() {
    local limit=$1 what=$2 begin=$EPOCHREALTIME
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $((${EPOCHREALTIME/./} - ${begin/./})) -lt $((limit * 1000000)) ] || fail "$what: not within $limit s"
        sleep 0.1
    done
    ok "$what ($(((${EPOCHREALTIME/./} - ${begin/./}) / 1000)) ms)"
}
trap 'local_ down >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

# All that a cluster of this instance could leave on the machine.
traces() {
    {
        ip -o link
        ip -o addr
        ip route
        cat /proc/self/mountinfo
        find /sys/fs/cgroup -maxdepth 2 -type d
        nft list ruleset
        iptables-save 2>/dev/null
    } | grep -E "whet$instance|10\.77\.$instance\.|10\.20$instance\.|10\.22$instance\.|$dir" || true
    grep -lsz "^WHETSTONE_LOCAL_DIR=$dir\$" /proc/[0-9]*/environ || true
}
settings() { cat /proc/sys/fs/inotify/max_user_{instances,watches} /proc/sys/vm/{overcommit_memory,panic_on_oom} /proc/sys/kernel/panic{,_on_oops}; }
another_runs() { [ -e /run/whetstone-local-sysctls.json ] || ip -o link | grep -qE ' whet[0-9]:'; }
if [ -z "$instance" ]; then
    for instance in 9 8 7 6 5; do [ -n "$(traces)" ] || break; done
fi
[ -z "$(traces)" ] || fail "instance $instance is in use: $(traces)"
# The machine's settings are shared by all clusters and go back with the last one.
if another_runs; then touch "$scratch/shared"; fi
settings >"$scratch/before"

# --- up
local_ up --instance "$instance" --nodes 2 --label whetstone.dev/smoke=yes --taint example.org/new=yes:PreferNoSchedule --json >"$scratch/up.json"
ok "up: $(tr -d ' \n' <"$scratch/up.json" | sed 's/.*"seconds"://; s/}$//')"
[ "$(stat -c %a "$dir/admin.kubeconfig")" = 600 ] || fail "the kubeconfig can be read by others"
kubectl get --raw /version | grep -q '"gitVersion": "v1' || fail "no version"
[ "$(kubectl get nodes -l whetstone.dev/smoke=yes -o jsonpath='{range .items[*]}{.spec.taints[?(@.key=="example.org/new")].value}{" "}{end}')" = "yes yes " ] || fail "labels or taints"
ok "nodes registered with their label and taint"
code=0
local_ up --instance "$instance" >/dev/null 2>"$scratch/again" || code=$?
[ $code -eq 2 ] && grep -q 'holds a cluster already' "$scratch/again" || fail "a second up in the same folder: $code"
code=0
"$bin/whet-local" up --dir "$scratch/other" --instance "$instance" 2>"$scratch/again" || code=$?
[ $code -eq 2 ] && grep -q 'port .* is taken' "$scratch/again" && [ ! -e "$scratch/other" ] || fail "a second up on the same ports: $code"
ok "a second cluster in the same folder or on the same ports is refused"

# --- pods
image=$(local_ image build --name localhost/smoke:1 --bin "$bin/smoke")
local_ image load "$image"
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeName: node2
  containers:
    - {name: web, image: "localhost/smoke:1", imagePullPolicy: Never, args: [serve, ":8080"], resources: {limits: {nvidia.com/gpu: 2}}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  restartPolicy: Never
  nodeSelector: {kubernetes.io/hostname: node1}
  containers:
    - {name: client, image: "localhost/smoke:1", imagePullPolicy: Never, args: [fetch, "http://web.default.svc.cluster.local/"], resources: {limits: {nvidia.com/gpu: 1}}}
YAML
phase_is() { [ "$(kubectl get pod "$1" -o jsonpath='{.status.phase}')" = "$2" ]; }
until_ 90 "a pod with a GPU reached another node's by service name" phase_is client Succeeded
kubectl logs client | grep -qE '^GPUs "GPU-[0-9a-f-]{36}"; served by web with GPUs "GPU-[0-9a-f-]{36},GPU-[0-9a-f-]{36}"$' || fail "client says: $(kubectl logs client)"
ok "it was given one GPU, the other two"
kubectl get --raw /api/v1/namespaces/default/pods/web:8080/proxy/ | grep -q 'served by web' || fail "apiserver to pod"
ok "the apiserver reaches pods by address"
kubectl run greedy --image localhost/smoke:1 --image-pull-policy Never --overrides '{"spec":{"containers":[{"name":"greedy","image":"localhost/smoke:1","resources":{"limits":{"nvidia.com/gpu":9}}}]}}' >/dev/null
unschedulable() { kubectl get pod greedy -o jsonpath='{.status.conditions[?(@.type=="PodScheduled")].message}' | grep -q 'Insufficient nvidia.com/gpu'; }
until_ 20 "a pod that asks for nine GPUs waits" unschedulable
kubectl delete pod greedy --now >/dev/null
gpus_are() { [ "$(kubectl get node "$1" -o jsonpath='{.status.allocatable.nvidia\.com/gpu}')" = "$2" ]; }
local_ node gpus node1 --unhealthy 3
until_ 60 "an unhealthy GPU is no longer offered" gpus_are node1 7
local_ node gpus node1
until_ 60 "and is again once it is well" gpus_are node1 8
local_ status | sed 's/^/#   /'

# --- nodes
ready_is() { [ "$(kubectl get node "$1" -o jsonpath='{.status.conditions[?(@.type=="Ready")].status}')" = "$2" ]; }
boot=$(kubectl get node node2 -o jsonpath='{.status.nodeInfo.bootID}')
local_ node crash node2
until_ 60 "crashed node is not ready" ready_is node2 Unknown
local_ node restart node2
[ "$(kubectl get node node2 -o jsonpath='{.status.nodeInfo.bootID}')" != "$boot" ] || fail "the same boot id after a restart"
web_answers() { kubectl get --raw /api/v1/namespaces/default/pods/web:8080/proxy/; }
until_ 90 "restarted node is ready and its pod serves again" web_answers
until_ 60 "the other node is ready before its cable is pulled" ready_is node1 True
local_ node link node1 down
until_ 60 "node without its cable is not ready" ready_is node1 Unknown
local_ node link node1 up
until_ 60 "and is again with it" ready_is node1 True
local_ node add late --gpus 72
gpus_are late 72 || fail "GPUs of the added node"
local_ node remove late
kubectl get node late >/dev/null 2>&1 && fail "the removed node is still there"
ok "a node was added and removed"

# --- control plane
local_ kill etcd
local_ start etcd
local_ stop apiserver
local_ start apiserver
kubectl get pod web >/dev/null || fail "objects are gone after etcd was killed"
ok "etcd was killed, the apiserver stopped: all objects are still there"

# --- down
local_ down
[ ! -e "$dir" ] || fail "the folder is still there"
[ -z "$(traces)" ] || fail "left behind: $(traces)"
if [ ! -e "$scratch/shared" ] && ! another_runs; then
    settings | diff "$scratch/before" - || fail "the machine's settings are changed"
    ok "nothing is left, and the machine's settings are as before"
else
    ok "nothing is left (another cluster keeps the machine's settings)"
fi
local_ down
ok "down again is fine"
echo "$passed passed, 0 failed"
