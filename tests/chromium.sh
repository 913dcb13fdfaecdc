#!/usr/bin/env bash
# The browser of the tests, without a window, and the program that drives it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh chromium=chromium chromedriver=chromium-driver
