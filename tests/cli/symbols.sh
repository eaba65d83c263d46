#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The library takes no names that are not its own.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

built=$(dirname "$MOEPACK")

# Prints defined global symbols that do not begin with mp_. gcc gives the lock of
# `omp critical(mp_name)` a name of its own before it.
foreign_symbols()
{
    nm -P --defined-only "$@" | awk 'NF >= 2 && $1 !~ /:$/ && $1 !~ /^(\.gomp_critical_user_)?mp_/ { print $1 }'
}

it "exports mp_ symbols only from the shared library"
assert_equal "$(foreign_symbols -D "$built/libmoepack.so")" ''
assert_equal "$(nm -D --defined-only "$built/libmoepack.so" | grep -cw mp_version)" 1

it "defines global mp_ symbols only in the static library"
assert_equal "$(foreign_symbols -g "$built/libmoepack.a")" ''

it "names its ABI in the shared library"
assert_equal "$(readelf -d "$built/libmoepack.so" | sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')" \
    "$(readlink "$built/libmoepack.so")"

finish
