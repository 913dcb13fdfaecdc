#!/usr/bin/env bash
# Installs Prometheus, which the tests start themselves, and its promtool. The packages that it
# recommends are separate services: none of them is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh --no-install-recommends prometheus=prometheus promtool=prometheus
