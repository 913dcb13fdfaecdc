#!/usr/bin/env bash
# Installs the browser of the tests, headless, and its driver.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
./debian.sh chromium=chromium chromedriver=chromium-driver
