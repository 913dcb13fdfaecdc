#!/usr/bin/env bash
# Runs the tests of `make test`, and prints one closing line with the counts of all runners.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(mktemp)
node_out=$(mktemp)
node=
trap '[ -z "$node" ] || kill "$node" 2>/dev/null || true; rm -f "$out" "$node_out"' EXIT
passed=0
skipped=0
failed=0
flaky=0

# counted WORD: the sum of the numbers before WORD in the runners' own summary lines.
counted() {
    { grep -E '^(test result:|[0-9]+ (passed|failed).* in |# (pass|fail|skipped) )' "$out" || true; } |
        sed -E 's/^# (pass|fail|skipped) ([0-9]+).*/\2 \1/; s/ (pass|fail)$/ \1ed/' |
        { grep -oE "[0-9]+ ($1)" || true; } | awk '{ sum += $1 } END { print sum + 0 }'
}

# Continues after a failure: the closing line covers all runners.
run() {
    echo "== $*"
    local status=0 failures
    "$@" 2>&1 | tee "$out" || status=$?
    passed=$((passed + $(counted passed)))
    skipped=$((skipped + $(counted 'skipped|ignored')))
    failures=$(counted failed)
    if [ "$status" -ne 0 ] && [ "$failures" -eq 0 ]; then
        failures=1
    fi
    failed=$((failed + failures))
}

# The output of the Node tests, which run beside the Python ones, and their exit status.
node_tests() {
    cat "$node_out"
    return "$node_status"
}

# again FAILED: up to three failed Python tests get a second try, alone: on a busy machine the
# failure may be the machine's. The closing line counts those that then pass.
again() {
    local before=$failed
    if [ "$1" -eq 0 ] || [ "$1" -gt 3 ]; then
        return
    fi
    run tests/.venv/bin/python -m pytest -q --last-failed --last-failed-no-failures none tests/python
    flaky=$((before + $1 - failed))
    failed=$((failed - $1))
}

SECONDS=0
run cargo fmt --all --check
run cargo clippy --workspace --all-targets -- -D warnings
run tests/redis.sh
run tests/chromium.sh
run tests/prometheus.sh
run tests/proxies.sh
run tests/package.sh
run make python-env
run cargo test --workspace --no-fail-fast
run cargo build -p loadtest
# The Node tests run beside the Python ones; their output comes after it, in one piece.
if command -v node >/dev/null; then
    node --test --test-reporter=tap tests/node/ >"$node_out" 2>&1 &
    node=$!
fi
if [ -x "$WS_CLUSTER_BIN" ]; then
    before=$failed
    run tests/.venv/bin/python -m pytest -q -n 2 --dist worksteal tests/python
    python_failed=$((failed - before))
else
    echo "$WS_CLUSTER_BIN is not there: the Python tests have no server to test" >&2
    failed=$((failed + 1))
    python_failed=0
fi
if [ -n "$node" ]; then
    node_status=0
    wait "$node" || node_status=$?
    node=
    run node_tests
else
    echo "== node is not installed: the Node checks are left out"
    skipped=$((skipped + 1))
fi
again "$python_failed"

echo
echo "$passed passed ($flaky of them on a second try), $failed failed, $skipped skipped in $SECONDS s"
[ "$failed" -eq 0 ]
