#!/usr/bin/env bash
# Installs what deploy/apt-packages.txt names and this machine lacks (root, or sudo).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

missing=()
while read -r package; do
  [[ -z $package || $package == \#* ]] && continue
  # An npm that did not come from Debian's package serves as well, and may conflict with it.
  [[ $package == npm ]] && command -v npm >/dev/null && continue
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
    missing+=("$package")
done <"$here/apt-packages.txt"
((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "want Debian 12 (apt-get); on another system install: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if ((EUID != 0)); then
  command -v sudo >/dev/null || { echo "want root or sudo to install: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "installing ${#missing[@]} packages: ${missing[*]}"
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
  --no-install-recommends "${missing[@]}" >/dev/null
