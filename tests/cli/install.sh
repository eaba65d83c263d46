#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What `make install` puts where, that programs can be built on it, and that
# `make uninstall` takes it away.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

install_to()
{
    make -s -C "$ROOT" install DESTDIR="$PWD/$1" PREFIX=/opt/moepack
}

it "installs a program that runs"
run install_to root
assert_status 0
run root/opt/moepack/bin/moepack --version
assert_status 0
run moepack --version
cp "$stdout" version
run root/opt/moepack/bin/moepack --version
assert_stdout "$(cat version)"

it "installs every manual page of this repository"
install_to root
assert_equal "$(cd root/opt/moepack/share/man && find . -type f | sed 's|.*/||' | sort)" \
    "$(cd "$ROOT/man" && printf '%s\n' * | sort)"
assert_equal "$(find root/opt/moepack/share/man/man1 -name '*.[!1]')" ''

it "installs the headers that <moepack/moepack.h> includes"
install_to root
headers=root/opt/moepack/include/moepack
assert_equal "$(cd $headers && printf '%s\n' * | grep -vx moepack.h)" \
    "$(sed -n 's|^#include <moepack/\(.*\)>|\1|p' $headers/moepack.h | sort)"

it "installs completions where the shells look for them"
install_to root
run cat root/opt/moepack/share/bash-completion/completions/moepack
assert_stdout "$(moepack completion bash)"
run cat root/opt/moepack/share/zsh/site-functions/_moepack
assert_stdout "$(moepack completion zsh)"
run cat root/opt/moepack/share/fish/vendor_completions.d/moepack.fish
assert_stdout "$(moepack completion fish)"

it "installs the Python package where the README says"
install_to root
run env PYTHONPATH=root/opt/moepack/share/moepack/python PYTHONDONTWRITEBYTECODE=1 \
    python3 -c 'import moepack; print(moepack.__version__)'
assert_stdout "$(moepack --version | sed 's/.* //')"

for kind in shared static; do
    it "installs a $kind library that programs can be built on"
    install_to root
    static=
    if [ $kind = static ]; then
        rm root/opt/moepack/lib/libmoepack.so*
        static=--static
    fi
    for example in repack load_rank; do
        # shellcheck disable=SC2046,SC2086
        run gcc -std=c11 -Wall -Wextra -Werror "$ROOT/tests/examples/$example.c" -o $example \
            $(PKG_CONFIG_SYSROOT_DIR=$PWD/root PKG_CONFIG_PATH=$PWD/root/opt/moepack/lib/pkgconfig \
                pkg-config $static --cflags --libs moepack) -lxxhash
        assert_status 0
    done
    moepack synth -q --preset deepseek-v4-flash --hidden 384 --intermediate 256 --experts 6 \
        --layers 2 --mtp 0 --vocab 40 -o source
    export LD_LIBRARY_PATH=$PWD/root/opt/moepack/lib
    run ./repack source packed
    assert_status 0
    run ./load_rank packed 1
    assert_status 0
    jq -r '.ranks[1].files[].tensors[].xxh3' packed/moepack.json >expected
    sed 's/.* //' "$stdout" >found
    assert_file_is found "$(cat expected)"
    unset LD_LIBRARY_PATH
done

it "says one version everywhere"
install_to root
version=$(sed -n 's/^#define MP_VERSION *"\(.*\)"/\1/p' root/opt/moepack/include/moepack/base.h)
run root/opt/moepack/bin/moepack --version
assert_stdout "moepack $version"
assert_equal "$(PKG_CONFIG_PATH=root/opt/moepack/lib/pkgconfig pkg-config --modversion moepack)" "$version"
assert_equal "$(cd root/opt/moepack/lib && echo libmoepack.so.*)" "libmoepack.so.${version%%.*}"
assert_equal "$(sed -n '1s/^moepack (\(.*\)) .*/\1/p' "$ROOT/debian/changelog")" "$version"
assert_equal "$(sed -n 's/^tool //p' root/opt/moepack/share/man/man5/moepack-format.5)" "$version"

it "leaves nothing behind when it is removed"
install_to root
run make -s -C "$ROOT" uninstall DESTDIR="$PWD/root" PREFIX=/opt/moepack
assert_status 0
assert_equal "$(find root ! -type d)" ''

finish
