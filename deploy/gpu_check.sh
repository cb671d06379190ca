#!/usr/bin/env bash
# make gpu-check: everything that wants a real GPU, in one run. Usage: deploy/gpu_check.sh BUILD_FOLDER
set -euo pipefail
build=$1
root=$(cd "$(dirname "$0")/.." && pwd)

say() { printf '\n== %s\n' "$*"; }

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L | grep -q '^GPU'; then
  echo "gpu-check: no GPU answers nvidia-smi here; want a machine with one (docs/gpu.md)" >&2
  exit 1
fi
say "device"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

say "parity: every op on the GPU, bit for bit as ref"
"$build/tests_parity" --gtest_brief=1

say "goldens of the original authors' code"
"$build/tests_golden" --gtest_brief=1

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck initcheck; do
    say "compute-sanitizer --tool $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/tests_parity" --gtest_brief=1 \
      --gtest_filter='*:-DiverseParity*' >"$build/$tool.log" 2>&1 || {
      tail -40 "$build/$tool.log"
      exit 1
    }
  done
else
  echo "compute-sanitizer is not installed: its three tools did NOT run"
fi

say "times: measured beside estimated"
"$build/gpu_bench" >"$build/gpu_bench.json"
"$root/tests/gates/model.py" --measured "$build/gpu_bench.json"
