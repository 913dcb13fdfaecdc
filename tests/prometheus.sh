#!/usr/bin/env bash
# The Prometheus of the tests, which they start themselves, and its promtool. What its package
# recommends are services of their own: none of them is needed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh --no-install-recommends prometheus=prometheus promtool=prometheus
