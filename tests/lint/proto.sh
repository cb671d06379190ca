#!/usr/bin/env bash
# Lints the protos and refuses changes that break released clients. Needs npm for the pinned buf.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
if ! cmp -s "$here/package-lock.json" "$here/node_modules/.installed"; then
  if ! (cd "$here" && npm ci --no-audit --no-fund --ignore-scripts --loglevel=error); then
    echo "cannot install buf with npm; without a network: make test LINT=off" >&2
    exit 1
  fi
  cp "$here/package-lock.json" "$here/node_modules/.installed"
fi
cd "$here/../../proto"
PATH="$here/node_modules/.bin:$PATH"
buf lint
buf breaking --against kvern/v1/released.binpb
echo "protos are lint-clean and compatible with the released ones"
