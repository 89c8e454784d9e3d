#!/usr/bin/env bash
# Installs Debian packages by name if they are missing: as root, or through sudo. Where neither is there it says
# what is lacking and goes on: what does not need the package still works.
#   packages.sh "what needs it" PACKAGE...
set -euo pipefail
purpose=$1
shift
missing=()
for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=(env DEBIAN_FRONTEND=noninteractive)
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n env DEBIAN_FRONTEND=noninteractive)
else
    echo "$purpose lacks: ${missing[*]} (not root and no sudo: install them with 'apt-get install ${missing[*]}')" >&2
    exit 0
fi
echo "installing for $purpose: ${missing[*]}" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=120 update -q && "${as_root[@]}" apt-get -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
    tail -5 "$log" >&2
    echo "$purpose lacks: ${missing[*]} (apt-get could not install them)" >&2
fi
