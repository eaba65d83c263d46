#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every header of include/ compiles alone, as C11 and as C++.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

for header in "$ROOT"/include/moepack/*.h; do
    name=moepack/${header##*/}

    it "compiles <$name> alone"
    echo "#include <$name>" >alone.c
    run "${CC:-gcc}" -std=c11 -pedantic -Wall -Wextra -Werror -I"$ROOT/include" -c alone.c
    assert_status 0
    cp alone.c alone.cc
    run "${CXX:-g++}" -std=c++11 -pedantic -Wall -Wextra -Werror -I"$ROOT/include" -c alone.cc
    assert_status 0
done

finish
