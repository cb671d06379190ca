#!/usr/bin/env bash
# Kvern's ops beside the tools a user could pick instead: venvs, then turns, then tables.
#   tests/bench/peers/run.sh BUILD_FOLDER [compare.py's flags, such as --quick or --only TriAttention]
# A venv per peer stays in build/peers and is made anew when its pins change: requirements/PEER.txt, and
# PEER.alone.txt for what is installed without what it depends on. What does not install is left out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
kvern=$1/kvern_rounds
shift
mkdir -p "$here/../../../build/peers"
venvs=$(cd "$here/../../../build/peers" && pwd)

install() {  # PEER PINS
  local pip=("$venvs/$1/bin/pip" install --quiet --disable-pip-version-check)
  local alone=$here/requirements/$1.alone.txt
  python3 -m venv --clear "$venvs/$1" && "${pip[@]}" -r "$here/requirements/$1.txt" &&
    { [ ! -f "$alone" ] || "${pip[@]}" --no-deps -r "$alone"; } && echo "$2" >"$venvs/$1/pins"
}

for file in "$here"/requirements/*.txt; do
  peer=$(basename "$file" .txt)
  [[ $peer == *.alone ]] && continue
  pins=$(grep -hv '^#' "$here/requirements/$peer".*txt | paste -sd' ')
  [ "$pins" = "$(cat "$venvs/$peer/pins" 2>/dev/null)" ] && continue
  echo "installing $peer: $pins" >&2
  install "$peer" "$pins" || { echo "$peer did not install: left out" >&2; rm -rf "${venvs:?}/$peer"; }
done
exec "$venvs/numpy/bin/python" -B "$here/compare.py" --kvern "$kvern" --venvs "$venvs" \
  --out "$venvs/peers.json" "$@"
