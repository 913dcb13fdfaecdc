#!/usr/bin/env bash
# Runs every fuzz target: tests/fuzz.sh SECONDS_EACH
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=$1

if [ ! -f fuzz/Cargo.toml ]; then
    echo "there are no fuzz targets: fuzz/Cargo.toml is missing" >&2
    exit 1
fi
if ! cargo fuzz --version >/dev/null 2>&1; then
    cargo install --locked cargo-fuzz
fi
if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "cargo-fuzz needs a nightly compiler: rustup toolchain install nightly" >&2
    exit 1
fi
count=0
for target in $(cargo +nightly fuzz list); do
    echo "== $target, $seconds s"
    cargo +nightly fuzz run "$target" -- -max_total_time="$seconds" -print_final_stats=1
    count=$((count + 1))
done
echo "$count fuzz targets, $seconds s each, no failure"
