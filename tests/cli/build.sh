#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What the Makefile makes anew, and what it leaves: shown on a small library and program of its
# own, in the folders of moepack.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

unset CC CFLAGS CPPFLAGS LDFLAGS CONF DEVELOPER V

# A tree with two files in the library and one in the program, built.
small_tree()
{
    mkdir -p include/moepack lib/base cmd
    cp "$ROOT/Makefile" .
    echo '#define MP_VERSION "0.1.0"' >include/moepack/base.h
    echo 'int mp_one(void); int mp_one(void) { return 1; }' >lib/base/one.c
    echo 'int mp_two(void); int mp_two(void) { return 2; }' >lib/base/two.c
    echo 'int mp_one(void); int main(void) { return mp_one() - 1; }' >cmd/main.c
    make >/dev/null
}

# Prints what make does: "compile cmd/main.o", and so on, sorted. Completions, which the program
# writes whenever it is new, are left out.
made()
{
    make "$@" 2>&1 | grep -v -e "^make: Nothing to be done for 'all'\.$" -e /completion/ |
        sed 's/^ *//; s/  */ /; s| build/release/| |' | sort
}

everything='archive libmoepack.a
compile cmd/main.o
compile lib/base/one.o
compile lib/base/two.o
link libmoepack.so
link libmoepack.so.0
link moepack'

it "makes nothing where nothing changed"
small_tree
assert_equal "$(made)" ''

it "compiles a file that was added, and no other"
small_tree
echo 'int mp_three(void); int mp_three(void) { return 3; }' >lib/base/three.c
assert_equal "$(made)" 'archive libmoepack.a
compile lib/base/three.o
link libmoepack.so
link libmoepack.so.0
link moepack'
assert_equal "$(made)" ''

it "drops the object of a file that was deleted"
small_tree
rm lib/base/two.c
assert_equal "$(made)" 'archive libmoepack.a
link libmoepack.so
link libmoepack.so.0
link moepack'
assert_equal "$(ar t build/release/libmoepack.a)" one.o
assert_equal "$(nm -D build/release/libmoepack.so | grep -c mp_two)" 0

it "makes all anew after a change of flags, and once"
small_tree
for flags in CFLAGS=-O1 CPPFLAGS=-DX="'\"it'\\''s\"'" LDFLAGS=-Wl,-O1 DEVELOPER=1; do
    assert_equal "$(made "$flags")" "$everything"
    assert_equal "$(made "$flags")" ''
done

it "makes moepack.pc anew after a change of the prefix, and once"
small_tree
assert_equal "$(made PREFIX=/opt)" 'write moepack.pc'
assert_equal "$(made PREFIX=/opt)" ''
assert_file_has build/release/moepack.pc 'prefix=/opt'

it "compiles a file again after a change of its header, which says the version too"
small_tree
echo '#include <moepack/base.h>' >>lib/base/two.c
made >/dev/null
echo '#define MP_VERSION "1.0.0"' >include/moepack/base.h
assert_equal "$(made)" 'archive libmoepack.a
compile lib/base/two.o
link libmoepack.so
link libmoepack.so.1
link moepack
write moepack.pc'

it "bears warnings, but not from developers"
small_tree
echo 'int mp_three(void) { return 3; }' >lib/base/three.c
run make build/release/libmoepack.a
assert_status 0
assert_stderr_has "'mp_three' [-Wmissing-prototypes]"
run make build/release/libmoepack.a DEVELOPER=1
assert_status 2
assert_stderr_has "'mp_three' [-Werror=missing-prototypes]"

finish
