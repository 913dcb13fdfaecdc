#!/usr/bin/env bash
# The Redis of the tests: they start their own from the path, so only the program is needed.
set -euo pipefail

if command -v redis-server >/dev/null; then
    exit
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "redis-server is not in the path: install it (Debian: apt-get install redis-server)" >&2
    exit 1
fi
# The package starts a service of its own, on the usual port, unless this file forbids it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server
command -v redis-server >/dev/null
