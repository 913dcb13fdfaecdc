#!/usr/bin/env bash
# The Python tests, two at a time. What fails runs once more, alone, and is named: on a busy machine a
# browser or a node may be too slow beside others, and a fault fails again.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
pytest=(tests/.venv/bin/python -m pytest -q tests/python)

"${pytest[@]}" -n 2 --dist worksteal
status=$?
if [ "$status" -eq 1 ]; then
    echo "== once more, alone, what has failed above"
    "${pytest[@]}" --last-failed --last-failed-no-failures none -rA
    status=$?
fi
exit "$status"
