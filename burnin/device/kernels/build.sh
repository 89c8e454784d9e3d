#!/usr/bin/env bash
# Compiles the kernels for every architecture that ships, into target/kernels, with the compiler wheels of the Python
# registry: no CUDA toolkit, no GPU. One cached step; it runs again when a source, this script or the compiler's
# version changes. The crate `whetstone-device` embeds what it finds there.
#   build.sh [--check-only]     --check-only: instructions of the images that are there
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
out=$top/target/kernels
venv=$top/target/cuda-compiler
version=13.5.37   # nvcc and its parts; CCCL has a version of its own
wheels=(nvidia-cuda-nvcc=="$version" nvidia-nvvm=="$version" nvidia-cuda-crt=="$version" nvidia-cuda-runtime=="$version"
    nvidia-cuda-nvdisasm=="$version" nvidia-cuda-cuobjdump=="$version" nvidia-cuda-cccl==13.3.5.0.6)

sources() { find "$here" -name '*.cu' -o -name '*.cuh' -o -name '*.h' -o -name 'build.sh' -o -name 'instructions.txt' | sort; }
stamp=$( { sources | xargs cat; echo "${wheels[*]}"; } | sha256sum | cut -d' ' -f1)
if [ "${1:-}" != --check-only ] && [ "$(cat "$out/stamp" 2>/dev/null)" = "$stamp" ]; then
    exit 0
fi

if [ "$(cat "$venv/stamp" 2>/dev/null)" != "${wheels[*]}" ]; then
    bash "$top/tests/setup/packages.sh" "the GPU kernels' compiler" python3 python3-venv
    echo "kernels: fetching the compiler (about 200 MB, once)" >&2
    rm -rf "$venv"
    if ! { python3 -m venv "$venv" && "$venv/bin/pip" install --quiet --disable-pip-version-check "${wheels[@]}"; }; then
        rm -rf "$venv"
        echo "kernels: the compiler could not be had; what is built now carries no GPU kernels and tests no GPU" >&2
        exit 0
    fi
    echo "${wheels[*]}" >"$venv/stamp"
fi
tools=$(dirname "$(find "$venv" -path '*/bin/nvcc' -type f | head -n 1)")
[ -x "$tools/nvcc" ] || { echo "kernels: no nvcc in $venv" >&2; exit 1; }

# File, architecture: a source is compiled for an architecture if its first line says so: // targets: sm_80 sm_90a …
if [ "${1:-}" != --check-only ]; then
    rm -f "$out/stamp"
    mkdir -p "$out"
    jobs=()
    for source in "$here"/*.cu; do
        name=$(basename "$source" .cu)
        targets=$(sed -n '1s|^// targets: ||p' "$source")
        [ -n "$targets" ] || { echo "$source:1: says no targets (// targets: sm_80 …)" >&2; exit 1; }
        for target in $targets; do
            case $target in
                compute_*) jobs+=("-arch=$target -ptx -o $out/$name.$target.ptx $source") ;;
                *) jobs+=("-arch=$target -cubin -o $out/$name.$target.cubin $source") ;;
            esac
        done
    done
    echo "kernels: compiling ${#jobs[@]} images" >&2
    # Images of sources and targets that are no more must not be embedded.
    find "$out" -name '*.cubin' -o -name '*.ptx' | while read -r old; do
        printf '%s\n' "${jobs[@]}" | grep -qF -- "-o $old " || rm -f "$old"
    done
    printf '%s\n' "${jobs[@]}" | xargs -P "$(nproc)" -I{} sh -c "'$tools/nvcc' -std=c++17 -O3 {}"
fi

# instructions.txt: image, kernel, an instruction that its SASS must hold. A kernel body that a preprocessor guard
# removed compiles to nothing without a word, so what ships is read back.
bad=0
sass=$(mktemp -d)
trap 'rm -rf "$sass"' EXIT
while read -r image kernel instruction; do
    case $image in ''|'#'*) continue ;; esac
    [ -e "$sass/$image" ] || "$tools/cuobjdump" -sass "$out/$image.cubin" >"$sass/$image"
    awk -v kernel="$kernel" '/Function :/ { inside = ($3 == kernel) } inside' "$sass/$image" >"$sass/kernel"
    if ! grep -qE "$instruction" "$sass/kernel"; then
        echo "kernels: $image.cubin: $kernel has no $instruction" >&2
        bad=1
    fi
done <"$here/instructions.txt"
[ $bad -eq 0 ] || exit 1
if [ "${1:-}" != --check-only ]; then
    echo "$stamp" >"$out/stamp"
fi
echo "kernels: $(find "$out" -name '*.cubin' | wc -l) cubins, $(find "$out" -name '*.ptx' | wc -l) PTX, instructions as expected" >&2
