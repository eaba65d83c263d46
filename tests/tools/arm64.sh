#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Fetches what the unit tests are linked with and loaded from on aarch64 into DIR, as packages of
# the Debian or Ubuntu that runs here. The system does not learn of another architecture and root
# is not needed: apt-get works on a state of its own, in which nothing is installed.
#
#     arm64.sh DIR
#
# Where DIR is there it does nothing, and needs no network.
set -euo pipefail

root=$1
work=$1.new
packages=(libc6-dev libcriterion-dev libgomp1 libjansson-dev libxxhash-dev libyaml-dev libzstd-dev)

[ ! -d "$root" ] || exit 0
rm -rf "$work"
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{etc/sources.list.d,state/lists/partial,cache/archives/partial,root/usr/lib}
work=$(cd "$work" && pwd)
: >"$work/state/status"

# Ubuntu keeps the packages of all but Intel's processors on another server.
cp -r /etc/apt/sources.list* "$work/etc"
find "$work/etc" -type f -exec sed -i -E \
    's,//([a-z0-9.-]+\.)?(archive|security)\.ubuntu\.com/ubuntu\b,//ports.ubuntu.com/ubuntu-ports,' {} +

cat >"$work/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Sandbox::User "root";
APT::Update::Post-Invoke-Success "";
Dir::Cache "$work/cache";
Dir::Etc::SourceList "$work/etc/sources.list";
Dir::Etc::SourceParts "$work/etc/sources.list.d";
Dir::State "$work/state";
Dir::State::Status "$work/state/status";
END
export APT_CONFIG=$work/apt.conf

# A source that does not answer may be one that nothing comes from.
apt-get update -q || true
apt-get install -q -y --no-install-recommends --download-only "${packages[@]}"

# Packages of one system may have their libraries in /lib and in /usr/lib.
ln -s usr/lib "$work/root/lib"
for package in "$work"/cache/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$work/root"
done
mv "$work/root" "$root"
