#!/usr/bin/env bash
# Installs programs that the tests start from the path:
# tests/debian.sh [--OPTION_OF_APT_GET] PROGRAM=PACKAGE...
# Installs the Debian packages of those that are missing, or lists them if it may not.
set -euo pipefail

options=()
programs=()
packages=()
while [[ "${1:-}" == --* ]]; do
    options+=("$1")
    shift
done
for pair in "$@"; do
    if ! command -v "${pair%%=*}" >/dev/null; then
        programs+=("${pair%%=*}")
        packages+=("${pair#*=}")
    fi
done
if [ "${#packages[@]}" -eq 0 ]; then
    exit
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not in the path: ${programs[*]}; install it (Debian: apt-get install ${packages[*]})" >&2
    exit 1
fi
# A package may start a service of its own, on the usual port, unless this file forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${options[@]}" "${packages[@]}"
for program in "${programs[@]}"; do
    command -v "$program" >/dev/null || {
        echo "$program is not in the path although its package is installed" >&2
        exit 1
    }
done
