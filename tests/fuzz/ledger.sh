#!/usr/bin/env bash
# Fuzzes every target for a while and adds one line per target to the ledger: ledger.sh BUILD SECONDS
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=$1 seconds=$2
seed=${FUZZ_SEED:-$(date +%s)}
commit=$(git -C "$here" rev-parse --short HEAD)
for target in "$build"/*_fuzz; do
  name=$(basename "$target" _fuzz)
  echo "fuzzing $name for $seconds s" >&2
  findings=0
  log=$(FUZZ_SEED=$seed "$here/run.sh" "$target" "$here/corpus/$name" "$seconds" 2>&1) || findings=1
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' <<<"$log")
  printf '%s %s %s %s %s asan+ubsan %s %s\n' "$(date -u +%F)" "$seed" "$name" "${runs:-0}" \
    "$seconds" "$findings" "$commit" | tee -a "$here/ledger.txt"
  ((findings == 0)) || { tail -n 40 <<<"$log" >&2; exit 1; }
done
