#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tests/tools/fuzz.sh SECONDS FUZZER...
# Runs each fuzz_NAME for SECONDS from tests/fuzz/seeds/NAME. What it finds on the way
# is kept beside it in fuzz_NAME.corpus and used again; an input that fails is left
# there as fuzz_NAME.crash-... .
set -euo pipefail

seconds=$1
shift
for fuzzer; do
    name=${fuzzer##*/fuzz_}
    seeds=tests/fuzz/seeds/$name
    if [ ! -d "$seeds" ]; then
        echo "$fuzzer: there are no seeds in $seeds" >&2
        exit 1
    fi
    mkdir -p "$fuzzer.corpus"
    echo "$name: $seconds seconds"
    if ! "$fuzzer" -max_total_time="$seconds" -timeout=10 -print_final_stats=1 \
        -artifact_prefix="$fuzzer." "$fuzzer.corpus" "$seeds" >"$fuzzer.log" 2>&1; then
        tail -n 50 "$fuzzer.log"
        exit 1
    fi
    grep -E 'number_of_executed_units|new_units_added' "$fuzzer.log"
done
