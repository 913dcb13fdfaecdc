#!/usr/bin/env bash
# Installs what makes a clean Debian root, for the test of the package.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh --no-install-recommends mmdebstrap=mmdebstrap systemd-analyze=systemd
