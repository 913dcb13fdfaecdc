#!/usr/bin/env bash
# Installs Redis: the tests start their own from the path, so only the program is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh redis-server=redis-server
