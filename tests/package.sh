#!/usr/bin/env bash
# Installs what makes a clean Debian root, for the test of the package; and a shell and a formatter,
# for those of completions and of the man page.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh --no-install-recommends mmdebstrap=mmdebstrap systemd-analyze=systemd
./debian.sh --no-install-recommends zsh=zsh groff=groff-base
