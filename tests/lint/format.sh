#!/usr/bin/env bash
# Fails when a source is not formatted as .clang-format says; `make format` mends it.
set -euo pipefail
cd "$(dirname "$0")/../.."
git ls-files '*.h' '*.cc' | xargs clang-format-14 --dry-run --Werror
