#!/usr/bin/env bash
# Builds the Python package, installs its wheel into a venv, and tests it against a real server.
# Usage: run.sh KVERND KVERN WORK [REQUIREMENTS...]; without REQUIREMENTS: check, with lint and types.
# A venv stays in WORK and is made anew when its pins change. Exit code 77: PyPI cannot be reached.
set -euo pipefail
package=$(cd "$(dirname "$0")/.." && pwd)
export KVERND KVERN
KVERND=$(realpath "$1")
KVERN=$(realpath "$2")
mkdir -p "$3"
work=$(cd "$3" && pwd)
shift 3

skip() {
  echo "SKIPPED: the Python client was NOT tested: $1" >&2
  exit 77
}

make_venv() {  # NAME
  local venv=$work/$1 pins=$package/tests/requirements/$1.txt
  cmp -s "$pins" "$venv/pins" && return
  python3 -m venv --clear "$venv" || skip "python3 -m venv failed (Debian: python3-venv)"
  "$venv/bin/pip" install --quiet --disable-pip-version-check --retries 1 -r "$pins" ||
    skip "pip cannot install $pins"
  cp "$pins" "$venv/pins"
}

test_in() {  # NAME
  local bin=$work/$1/bin
  make_venv "$1"
  rm -rf "$work/dist"
  (cd "$package" && "$bin/hatchling" build -d "$work/dist" >"$work/build.log" 2>&1) ||
    { cat "$work/build.log" >&2; exit 1; }
  "$bin/pip" install --quiet --disable-pip-version-check --force-reinstall --no-deps "$work"/dist/*.whl
  "$bin/pip" check --disable-pip-version-check
  if [ -x "$bin/mypy" ]; then
    (cd "$package" && "$bin/ruff" check --no-cache . && "$bin/ruff" format --no-cache --check . &&
      "$bin/mypy" --cache-dir "$work/mypy")
  fi
  (cd "$package" && KVERN_DIST=$work/dist "$bin/python" -B -m pytest -p no:cacheprovider)
}

for name in "${@:-check}"; do
  echo "== $name"
  test_in "$name"
done
