#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Makes what is handed on, from the last commit, and tries it: the archive, a build in two places,
# the Debian packages, and the image. Takes Debian's debhelper, dh-python and lintian.
#
#     tests/dist.sh           all of it, in about five minutes
#     tests/dist.sh archive   one part: archive, build, packages, image
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=$(sed -n 's/^#define MP_VERSION *"\(.*\)"/\1/p' "$root/include/moepack/base.h")
archive=$root/build/moepack-$version.tar.xz
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the caller builds with is of no account, nor a cache of objects that its PATH begins with.
unset CC CFLAGS CPPFLAGS LDFLAGS CONF DEVELOPER MAKEFLAGS MAKELEVEL
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

fail()
{
    echo "FAILED: $*" >&2
    exit 1
}

# quietly NAME COMMAND...: prints what it prints only where it fails.
quietly()
{
    local log=$work/$1.log

    shift
    "$@" >"$log" 2>&1 || { cat "$log" >&2 && fail "$*"; }
}

# The sources, as they come out of the archive, in $work/$1/moepack-VERSION.
unpack()
{
    mkdir -p "$work/$1"
    tar -C "$work/$1" -xf "$archive"
}

# try COMMAND...: packs and verifies a small checkpoint with the program that a command runs, in
# the directory ./tried.
try()
{
    "$@" synth -q --preset deepseek-v4-flash --hidden 384 --intermediate 256 --experts 6 \
        --layers 2 --mtp 0 --vocab 40 -o tried/source
    "$@" repack -q tried/source --target megamoe-w4a8 --ep 3 -o tried/packed
    "$@" verify tried/packed --source tried/source
}

check_archive()
{
    cp "$archive" "$work/first.tar.xz"
    quietly archive make -C "$root" dist
    cmp "$archive" "$work/first.tar.xz" || fail "the same commit gives another archive"
    unpack archive
    (cd "$work/archive/moepack-$version" && find . ! -type d | sed 's|^\./||' | LC_ALL=C sort) >"$work/found"
    git -C "$root" -c core.quotePath=off ls-tree -r --name-only HEAD | LC_ALL=C sort >"$work/expected"
    diff "$work/expected" "$work/found" || fail "the archive is not the commit"
}

# Builds in a directory of its own below $work, once.
build()
{
    [ ! -e "$work/$1" ] || return 0
    unpack "$1"
    quietly build make -C "$work/$1/moepack-$version" -j"$(nproc)"
}

check_build()
{
    local name

    build one
    build another-place
    for name in moepack libmoepack.so.0 libmoepack.a; do
        cmp "$work"/{one,another-place}/moepack-"$version/build/release/$name" ||
            fail "$name tells where it was built"
    done
    if grep -qF "$work" "$work/one/moepack-$version/build/release/moepack"; then
        fail "the program names the directory that it was built in"
    fi
}

# Builds the packages in a directory of their own below $work.
build_packages()
{
    unpack "$1"
    (cd "$work/$1/moepack-$version" &&
        DEB_BUILD_OPTIONS="nocheck parallel=$(nproc)" quietly packages dpkg-buildpackage -us -uc)
}

check_packages()
{
    local installed=$work/installed name
    local triplet

    triplet=$(dpkg-architecture -qDEB_HOST_MULTIARCH)
    build_packages packages
    lintian --fail-on error,warning "$work"/packages/*.changes 2>&1 |
        { grep -v '^running with root privileges is not recommended!$' || true; }
    [ "${PIPESTATUS[0]}" -eq 0 ] || fail lintian
    build_packages packages-of-another-place
    for name in moepack libmoepack0 libmoepack-dev python3-moepack-loader; do
        cmp "$work"/packages{,-of-another-place}/"$name"_"$version"_*.deb || fail "$name is not the same when it is built again"
        dpkg-deb -x "$work"/packages/"$name"_"$version"_*.deb "$installed"
    done

    (mkdir -p "$work/p/tried" && cd "$work/p" && try "$installed/usr/bin/moepack")
    export PKG_CONFIG_SYSROOT_DIR=$installed PKG_CONFIG_PATH=$installed/usr/lib/$triplet/pkgconfig
    # shellcheck disable=SC2046
    gcc "$installed/usr/share/doc/libmoepack-dev/examples/load_rank.c" -o "$work/load_rank" \
        $(pkg-config --cflags --libs moepack) -lxxhash
    LD_LIBRARY_PATH=$installed/usr/lib/$triplet "$work/load_rank" "$work/p/tried/packed" 2 >"$work/in_c"
    PYTHONPATH=$installed/usr/lib/python3/dist-packages PYTHONDONTWRITEBYTECODE=1 \
        python3 "$installed/usr/share/doc/python3-moepack-loader/examples/load_rank.py" \
        "$work/p/tried/packed" 2 >"$work/in_python"
    diff "$work/in_c" "$work/in_python" || fail "the packages' examples do not agree"
    PYTHONPATH=$installed/usr/lib/python3/dist-packages python3 -c '
from importlib.metadata import distribution
assert {p.group for p in distribution("moepack").entry_points} == {
    "sglang.srt.plugins", "vllm.general_plugins"}' || fail "engines do not find the plugin"
}

# Where no docker runs: the same commands in this system, and the image as the root of a process.
make_root()
{
    local image=$work/image

    build one
    (cd "$work/one/moepack-$version" && sed -e ':a' -e '/\\$/{N;s/\\\n//;ba' -e '}' Dockerfile |
        sed -n "s|/image|$image|g; s/^RUN \(install \)/\1/p" | bash -euo pipefail)
    mkdir -p "$image/data/tried"
    in_image=(unshare --map-root-user --root="$image" --wd=/data /usr/bin/moepack)
}

check_image()
{
    local in_image

    if docker info >/dev/null 2>&1; then
        quietly image docker build -t moepack "$root"
        mkdir -p "$work/data/tried"
        in_image=(docker run --rm -u "$(id -u):$(id -g)" -v "$work/data:/data" moepack)
    else
        echo "no docker runs here: the image is tried as the root of a process"
        make_root
    fi
    (mkdir -p "$work/i" && cd "$work/i" && try "${in_image[@]}")
}

if [ $# -eq 0 ]; then
    set -- archive build packages image
fi
quietly dist make -C "$root" dist
for part; do
    case $part in
    archive | build | packages | image)
        echo "== $part"
        "check_$part"
        ;;
    *)
        echo "usage: tests/dist.sh [archive | build | packages | image]..." >&2
        exit 2
        ;;
    esac
done
echo "all of it holds: $*"
