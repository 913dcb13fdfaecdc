#!/usr/bin/env bash
# The Python environment of the tests: tests/python-env.sh DIRECTORY REQUIREMENTS
set -euo pipefail
venv=$1
requirements=$2

if ! python3 -m venv "$venv" >/dev/null 2>&1; then
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "python3 -m venv fails: install Python 3.10 or later with its venv module" >&2
        exit 1
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3 python3-venv
    rm -rf "$venv"
    python3 -m venv "$venv"
fi
"$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$requirements"
