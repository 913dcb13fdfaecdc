#!/usr/bin/env bash
# Installs nginx and HAProxy, which the tests start themselves, without rights and in a folder of
# their own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh --no-install-recommends nginx=nginx haproxy=haproxy
