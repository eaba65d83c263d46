#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The libraries offer what the public headers declare, no more and no less.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

built=$(dirname "$MOEPACK")

# Prints the functions that <moepack/moepack.h> declares, sorted. gcc lists a declaration a line:
# /* include/moepack/base.h:30:NC */ extern const char *mp_version (void);
declared()
{
    gcc -I"$ROOT/include" -x c -fsyntax-only -aux-info prototypes "$ROOT/include/moepack/moepack.h" &&
        sed -n 's|^/\* [^ ]*/moepack/[^ ]* \*/ extern [^(]*\<\([A-Za-z0-9_]*\) (.*|\1|p' prototypes |
        sort -u
}

# Prints the global symbols of a library that others can see, sorted. Locks of `omp critical` are
# not among them: compilers share them between libraries, whatever visibility is asked for.
offered()
{
    readelf -W "$@" | awk '($5 == "GLOBAL" || $5 == "WEAK") && $6 == "DEFAULT" && $7 != "UND" &&
        $8 !~ /^\.gomp_critical_user_mp_/ { print $8 }' | sort
}

for library in libmoepack.so libmoepack.a; do
    it "offers in $library what public headers declare"
    table=--symbols
    [ $library = libmoepack.a ] || table=--dyn-syms
    declared >expected
    offered $table "$built/$library" >found
    assert_file_is found <expected
    assert_file_has expected mp_version
done

it "names symbols of the static library that are hidden mp_ too"
assert_equal "$(nm -g -P --defined-only "$built/libmoepack.a" |
    awk 'NF >= 2 && $1 !~ /:$/ && $1 !~ /^(\.gomp_critical_user_)?mp_/ { print $1 }')" ''

it "keeps what only the program needs out of the libraries"
assert_equal "$(ar t "$built/libmoepack.a" | sort)" "$(cd "$ROOT/lib" &&
    find . -name '*.c' ! -path './bench/*' ! -path './engine/*' ! -path './synth/*' | sed 's|.*/||; s/c$/o/' | sort)"
assert_equal "$(nm -D -u "$built/libmoepack.so" | grep mp_)" ''

it "names its ABI in the shared library"
assert_equal "$(readelf -d "$built/libmoepack.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')" \
    "$(readlink "$built/libmoepack.so")"

finish
