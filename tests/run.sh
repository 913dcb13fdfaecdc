#!/usr/bin/env bash
# What `make test` does, and one closing line with the counts of all runners.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(mktemp)
trap 'rm -f "$out"' EXIT
passed=0
skipped=0

# counted WORD: the sum of the numbers before WORD in the runners' own summary lines.
counted() {
    { grep -E '^(test result:|=+ .* in |# (pass|skipped) )' "$out" || true; } |
        sed -E 's/^# (pass|skipped) ([0-9]+).*/\2 \1/; s/ pass$/ passed/' |
        { grep -oE "[0-9]+ ($1)" || true; } | awk '{ sum += $1 } END { print sum + 0 }'
}

run() {
    echo "== $*"
    "$@" 2>&1 | tee "$out"
    passed=$((passed + $(counted passed)))
    skipped=$((skipped + $(counted 'skipped|ignored')))
}

SECONDS=0
run cargo fmt --all --check
run cargo clippy --workspace --all-targets -- -D warnings
run make python-env
run cargo test --workspace --no-fail-fast
if [ -x "$WS_CLUSTER_BIN" ]; then
    run tests/.venv/bin/python -m pytest -q tests/python
else
    echo "$WS_CLUSTER_BIN is not there: the Python tests have no server to test" >&2
    exit 1
fi
if command -v node >/dev/null; then
    run node --test --test-reporter=tap tests/node/
else
    echo "== node is not installed: the Node checks are left out"
    skipped=$((skipped + 1))
fi

echo
echo "$passed passed, 0 failed, $skipped skipped in $SECONDS s"
