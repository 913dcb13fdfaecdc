#!/usr/bin/env bash
# Makes the Debian package of a built program: systemd/deb.sh BINARY [OUTPUT_FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 output=${2:-target/debian}
cargo_deb=3.8.0

# One at a time: two share the folders below.
mkdir -p target
exec 9>target/deb.lock
flock 9

# In the tree, so that it lasts as long as what was built with it.
if [ ! -x target/tools/bin/cargo-deb ]; then
    echo "installing cargo-deb $cargo_deb" >&2
    cargo install --quiet --locked --root target/tools cargo-deb@$cargo_deb
fi
# The names in Cargo.toml's list of assets.
root=target/debian-root
rm -rf "$root"
systemd/install.sh "$binary" "$root" /usr
# Profiles need the names of functions; the lines of the source are four fifths of the file.
strip --strip-debug "$root/usr/bin/ws-cluster"
mkdir -p "$output"
PATH="$PWD/target/tools/bin:$PATH" cargo deb --quiet --no-build --no-strip --output "$output/"
