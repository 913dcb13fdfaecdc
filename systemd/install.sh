#!/usr/bin/env bash
# Installs what `cargo build --release` built: systemd/install.sh BINARY [DESTDIR] [PREFIX]. Used by
# `make install` and, with a folder of its own as DESTDIR, by `make deb`.
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 destdir=${2:-} prefix=${3:-/usr/local}
root=$destdir$prefix
put() { install -D -m "$1" "$2" "$3"; }

put 0755 "$binary" "$root/bin/ws-cluster"
for unit in systemd/ws-cluster.service systemd/ws-cluster@.service systemd/ws-cluster.socket; do
    name=$(basename "$unit")
    put 0644 "$unit" "$root/lib/systemd/system/$name"
    sed -i "s#/usr/bin/ws-cluster#$prefix/bin/ws-cluster#; s#/usr/share/doc#$prefix/share/doc#" \
        "$root/lib/systemd/system/$name"
done
put 0644 systemd/ws-cluster.sysctl.conf "$root/share/ws-cluster/sysctl.conf"
put 0644 systemd/config.toml "$root/share/ws-cluster/config.toml"
# The folders of a clone, because the pages link to each other and to the examples.
for page in README.md CHANGELOG.md LICENSE docs/*.md docs/openapi.yaml docs/asyncapi.yaml \
    systemd/ws-cluster.sysctl.conf deploy/*/*.cfg deploy/*/*.conf deploy/*/*.yml deploy/*/*.json; do
    put 0644 "$page" "$root/share/doc/ws-cluster/$page"
done

generated=$(mktemp -d)
trap 'rm -r "$generated"' EXIT
"$binary" man >"$generated/ws-cluster.1"
gzip -9n "$generated/ws-cluster.1"
put 0644 "$generated/ws-cluster.1.gz" "$root/share/man/man1/ws-cluster.1.gz"
"$binary" completions bash >"$generated/bash"
put 0644 "$generated/bash" "$root/share/bash-completion/completions/ws-cluster"
"$binary" completions zsh >"$generated/zsh"
# zsh searches the one below /usr, as Debian builds it, and the other below /usr/local.
functions=site-functions
[ "$prefix" != /usr ] || functions=vendor-completions
put 0644 "$generated/zsh" "$root/share/zsh/$functions/_ws-cluster"

if [ -z "$destdir" ]; then
    cat <<END
Installed under $prefix. For the service, as root:
  install -d /etc/ws-cluster
  cp -n $prefix/share/ws-cluster/config.toml /etc/ws-cluster/
  (umask 077 && cd /etc/ws-cluster && echo redis://127.0.0.1:6379/0 >redis &&
      openssl rand -hex 32 >ops_token &&
      printf '[[project]]\npid = "1"\nsecrets = ["%s"]\n' "\$(openssl rand -hex 32)" >projects.toml)
  systemctl daemon-reload && systemctl enable --now ws-cluster
END
fi
