#!/usr/bin/env bash
# Runs the tests that take a seed with new seeds: tests/seeds.sh SECONDS
# Exits with 1 at the first failure, and prints the command that repeats it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cargo test --lib --test sim --test fuzz --test push --no-run
rounds=0
SECONDS=0
while [ "$rounds" -eq 0 ] || [ "$SECONDS" -lt "$1" ]; do
    seed=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
    echo "== seed $seed"
    for what in "SIM_SEED=$seed SIM_RUNS=10 cargo test -q --test sim" \
        "FUZZ_SEED=$seed cargo test -q --test fuzz" \
        "PUSH_SEED=$seed cargo test -q --test push" \
        "PROPTEST_RNG_SEED=$seed cargo test -q --lib"; do
        if ! bash -c "$what"; then
            echo "repeat with: $what" >&2
            exit 1
        fi
    done
    rounds=$((rounds + 1))
done
echo "$rounds rounds, each with a seed of its own, no failure"
