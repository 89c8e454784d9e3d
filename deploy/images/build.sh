#!/usr/bin/env bash
# Makes the container images that the chart names, from given programs: no engine, no base image, no registry, no root. The
# same programs give the same bytes.
#   build.sh [--bin FOLDER] [--out FOLDER] [--agent-files SOURCE:TARGET]... [--registry HOST/PATH]
#     --bin          where whetstone-operator and whetstone-agent are   (default target/release of this repository)
#     --out          where the images go                                (default target/images)
#     --agent-files  a file or folder that the agent's image gets too   (such as a driver's libraries)
#     --registry     what stands before the images' names               (default localhost)
# Prints one line for each: NAME FILE. Each file is an OCI image layout in a tar: `ctr -n k8s.io images import FILE`,
# `skopeo copy oci-archive:FILE docker://NAME`, `podman load -i FILE`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
bin=$root/target/release
out=$root/target/images
registry=localhost
files=()
usage() {
    echo "build.sh: $1; see the head of this script" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --bin | --out | --agent-files | --registry) [ $# -ge 2 ] || usage "$1 wants a value" ;;
    *) usage "unknown argument $1" ;;
    esac
    case $1 in
    --bin) bin=$2 ;;
    --out) out=$2 ;;
    --agent-files) files+=(--file "$2") ;;
    --registry) registry=${2%/} ;;
    esac
    shift 2
done
for program in whetstone-operator whetstone-agent; do
    [ -x "$bin/$program" ] || usage "$bin/$program is not there: cargo build --release -p whetstone-operator -p whetstone-agent, or --bin FOLDER"
done
builder=${WHETSTONE_LOCAL_BIN:-$root/target/local/bin}/whet-local
[ -x "$builder" ] || bash "$root/deploy/local/build.sh"

# The version of the chart is that of the images.
version=$(sed -n 's/^appVersion: *"\(.*\)"$/\1/p' "$root/deploy/chart/whetstone/Chart.yaml")
[ -n "$version" ] || usage "no appVersion in the chart"
mkdir -p "$out"

image() { # NAME ARGUMENTS...
    local name=$1 file=$out/$1-$version.tar
    shift
    "$builder" image build --name "$registry/$name:$version" --out "$file" "$@" >/dev/null
    echo "$registry/$name:$version $file"
}
# By number, as there is no /etc/passwd; the same as runAsUser in the chart.
image whetstone-operator --bin "$bin/whetstone-operator" --user 65532:65532
# Root: see the chart's DaemonSet for what it needs and why.
image whetstone-agent --bin "$bin/whetstone-agent" "${files[@]}"
