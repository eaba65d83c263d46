#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building and testing moepack takes, on Debian and Ubuntu, and packages that are
# named. Where everything is there it does nothing, and needs neither root nor a network.
set -euo pipefail

packages=(
    # to build
    build-essential pkg-config libjansson-dev libxxhash-dev libyaml-dev libzstd-dev
    libopenblas-dev
    # to test
    libcriterion-dev jq xxhash zstd mandoc python3
    clang libomp-dev clang-format clang-tidy cppcheck shellcheck codespell
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static
    "$@"
)

if ! command -v apt-get >/dev/null; then
    echo "There is no apt-get here. Install what your system calls these Debian packages:"
    printf '%s\n' "${packages[@]}" 'libclang-rt-dev' | fmt -w 76 | sed 's/^/    /'
    echo "then build with 'make' and test with 'make test'."
    exit 1
fi >&2

# Names and what they provide of all installed packages, with a blank on either side.
list_installed()
{
    dpkg-query -W -f ' ${Package} ${Provides} ${db:Status-Status}\n' |
        sed -n 's/ installed$/ /p' | tr ',' ' '
}

is_installed()
{
    grep -qF " $1 " <<<"$have"
}

as_root()
{
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        echo "These packages are missing, and only root can install them:" >&2
        printf '%s\n' "${missing[@]}" | fmt -w 76 | sed 's/^/    /' >&2
        exit 1
    fi
}

install()
{
    as_root apt-get update -q
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"
}

have=$(list_installed)
missing=()
for package in "${packages[@]}"; do
    is_installed "$package" || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    install "${missing[@]}"
fi

# The sanitizers' runtime has clang's version in its name.
version=$(clang -dumpversion)
missing=("libclang-rt-${version%%.*}-dev")
is_installed "${missing[0]}" || install "${missing[@]}"
