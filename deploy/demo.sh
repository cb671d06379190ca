#!/usr/bin/env bash
# make demo: a real server, a real cache, what was kept. demo.sh BUILD_FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
bin=$(cd "$1" && pwd)
data=$root/tests/data
work=$(mktemp -d)
server=
stop() {
  if [[ -n $server ]]; then
    kill -TERM "$server" 2>/dev/null && wait "$server" || true
  fi
  rm -rf "$work"
}
trap stop EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[[ -t 1 ]] || say() { printf '\n%s\n' "$*"; }

say "1. kvernd starts on a temporary Unix socket"
touch "$work/log"  # grep may look before the server's shell has made it
"$bin/kvernd" --listen "unix:$work/kvern.sock" --metrics-listen 127.0.0.1:0 2>"$work/log" &
server=$!
export KVERN_SERVER=unix:$work/kvern.sock
until grep -q 'serves on' "$work/log"; do
  kill -0 "$server" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  read -rt 0.05 <> <(:) || true
done
sed -n 's/.*\(kvernd .* serves on\)/\1/p' "$work/log"
port=$(sed -n 's/.*metrics on port \([0-9]*\).*/\1/p' "$work/log")
scrape() {
  exec 3<>"/dev/tcp/127.0.0.1/$port"
  printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
  tr -d '\r' <&3 | grep '^kvern_' | grep -vE '_bucket|_limit|_sum|_rpc_duration' | sort
  exec 3>&-
}
scrape >"$work/before"

say "2. kvern compresses the cache of 1,024 tokens of Pride and Prejudice (SmolLM2-135M, 8 layers) with the default policy"
"$bin/kvern" compress "$data/pride-1024.safetensors" -o "$work/small.safetensors" \
  --calibration "$data/smollm2-calibration.safetensors" \
  --calibration "$data/smollm2-query-moments.safetensors"

say "3. Which tokens each layer and head kept"
"$bin/kvern" inspect "$work/small.safetensors"

say "4. The metrics that moved"
scrape >"$work/after"
comm -13 "$work/before" "$work/after" | sed 's/^/  /'

say "5. The server stops"
kill -TERM "$server"
wait "$server"
server=
tail -n 1 "$work/log" | sed 's/^[^ ]* *//'

say "Try next"
cat <<NEXT
  build/cpu/kvernd &                                  # serve on the default socket
  build/cpu/kvern stages                              # every policy's name, parameters and inputs
  build/cpu/kvern compress --local tests/data/pride-1024.safetensors -o small.safetensors --policy evict50
  build/cpu/kvern compress --local tests/data/qwen-512.safetensors -o few.safetensors --keep-ratio 0.25 --scorer keydiff:unrotate=true
  docs/quickstart.md                                  # from here to your own engine
NEXT
