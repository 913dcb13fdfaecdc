#!/usr/bin/env bash
# Downloads the files of Swagger UI, compressed as they are served: renew.sh VERSION
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
version=$1

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
npm pack --silent --pack-destination "$unpacked" "swagger-ui-dist@$version" >/dev/null
tar -xzf "$unpacked/swagger-ui-dist-$version.tgz" -C "$unpacked"
for file in swagger-ui-bundle.js swagger-ui.css; do
    gzip -9nc "$unpacked/package/$file" >"$file.gz"
done
cp "$unpacked/package/NOTICE" "$unpacked/package/swagger-ui-bundle.js.LICENSE.txt" .
