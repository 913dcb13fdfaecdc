#!/usr/bin/env bash
# Runs a server under sustained load: tests/soak.sh DIRECTORY_OF_BINARIES SECONDS CONNECTIONS
# Exits with 1 if anything was lost, doubled or out of order; prints the server's memory at both
# ends.
set -euo pipefail
bin=$1
seconds=$2
connections=$3

log=$(mktemp)
"$bin/ws-cluster" --bind 127.0.0.1 --ws_port 0 --http_port 0 --prometheus_port 0 >"$log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 100); do
    grep -q 'ws-cluster listening:' "$log" && break
    kill -0 "$server" || { cat "$log" >&2; exit 1; }
    sleep 0.1
done
port() { sed -nE "s/.*ws-cluster listening:.* ?$1=([^ ]+).*/\1/p" "$log" | head -n 1; }
memory() { awk '/^VmRSS/ { print $2 " KiB" }' "/proc/$server/status"; }
ws=$(port ws)
http=$(port http)

"$bin/loadtest" fanout --ws "$ws" --http "$http" --connections "$connections" --seconds 5
before=$(memory)
"$bin/loadtest" fanout --ws "$ws" --http "$http" --connections "$connections" --seconds "$seconds"
"$bin/loadtest" connect --cycle --ws "$ws" --http "$http" --seconds 10
echo "memory of the server: $before after 5 s, $(memory) after $seconds s"
