#!/usr/bin/env bash
# Runs one libFuzzer target over its committed corpus: run.sh TARGET CORPUS [SECONDS].
# New inputs go to a temporary folder; a crash leaves its input there and prints where.
set -euo pipefail
target=$1 corpus=$2 seconds=${3:-${FUZZ_SECONDS:-20}}
found=$(mktemp -d)
if "$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
    -seed="${FUZZ_SEED:-1}" -print_final_stats=1 -verbosity=0 -artifact_prefix="$found/" \
    "$found" "$corpus"; then
  rm -rf "$found"
else
  echo "the input that failed is in $found" >&2
  exit 1
fi
