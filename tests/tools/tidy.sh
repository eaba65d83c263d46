#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tests/tools/tidy.sh FILE.c FLAG...
# Runs clang-tidy on one file; prints what it finds.
set -euo pipefail

file=$1
shift
case $file in
lib/base/error.c | cmd/output.c) ;; # these define what analyzed.h talks about
cmd/*) set -- "$@" -DANALYZED_COMMAND -include tests/tools/analyzed.h ;;
*) set -- "$@" -include tests/tools/analyzed.h ;;
esac
# The analyzer gives a function up after so many states; without a limit a few large ones
# take most of the time.
set -- "$@" -Xclang -analyzer-config -Xclang max-nodes=30000
# Its count of suppressed warnings goes to standard error, and so do its failures.
if ! errors=$(clang-tidy --quiet "$file" -- "$@" 2>&1 >&3); then
    echo "$errors" >&2
    exit 1
fi 3>&1
