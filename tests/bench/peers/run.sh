#!/usr/bin/env bash
# Kvern's ops beside the tools a user could pick instead: venvs, then turns, then tables.
#   tests/bench/peers/run.sh BUILD_FOLDER [compare.py's flags, such as --quick or --only TriAttention]
# A venv per peer stays in build/peers and is made anew when its requirements change.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kvern=$1/kvern_rounds
shift
venvs=$here/../../../build/peers
mkdir -p "$venvs"
for pins in "$here"/requirements/*.txt; do
  venv=$venvs/$(basename "$pins" .txt)
  cmp -s "$pins" "$venv/pins.txt" && continue
  echo "installing $(basename "$venv"): $(paste -sd' ' "$pins")" >&2
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$pins"
  cp "$pins" "$venv/pins.txt"
done
exec "$venvs/numpy/bin/python" -B "$here/compare.py" --kvern "$kvern" --venvs "$venvs" \
  --out "$venvs/peers.json" "$@"
