#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The Python package in lib/loaders and the example of loading in C. The tests themselves are in
# tests/loaders.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

export ROOT MOEPACK LOAD_RANK=$WORK/load_rank PYTHONDONTWRITEBYTECODE=1
unset MOEPACK_DIR MOEPACK_VERIFY PYTHONPATH

it "compiles the C example against the public headers only"
built=$(dirname "$MOEPACK")
run gcc -std=c11 -Wall -Wextra -Werror -I"$ROOT/include" "$ROOT/tests/examples/load_rank.c" \
    -o "$LOAD_RANK" -L"$built" -lmoepack -lxxhash -Wl,-rpath,"$built"
assert_status 0

for tests in "$ROOT"/tests/loaders/test_*.py; do
    it "passes $(basename "$tests")"
    run python3 "$tests"
    assert_status 0
done

it "makes a wheel that needs nothing, with the entry points of both engines"
cat >wheel.py <<'END_OF_WHEEL'
import importlib.metadata, os, sys, zipfile
sys.path.insert(0, os.path.join(os.environ["ROOT"], "lib/loaders"))
import wheel_backend
name = wheel_backend.build_wheel(".")
first = open(name, "rb").read()
wheel_backend.build_wheel(".")
assert open(name, "rb").read() == first, "the same files give another wheel"
zipfile.ZipFile(name).extractall("site")
sys.path[0] = "site"
for group in ("sglang.srt.plugins", "vllm.general_plugins"):
    points = importlib.metadata.distribution("moepack").entry_points
    (point,) = [p for p in points if p.group == group]
    print(group, point.name, point.load().__module__)
END_OF_WHEEL
run python3 wheel.py
assert_stdout "sglang.srt.plugins moepack moepack.sglang
vllm.general_plugins moepack moepack.vllm"

it "needs nothing of later Pythons than 3.9"
run python3 -c '
import ast, glob, os, sys
for path in glob.glob(os.path.join(os.environ["ROOT"], "lib/loaders/**/*.py"), recursive=True):
    ast.parse(open(path).read(), path, feature_version=(3, 9))'
assert_status 0

# The lines between ".Bd" and ".Ed" behind a heading of a page, as they are written there.
shown()
{
    sed -n "/^\.Ss $2\$/,/^\.Ed/p" "$ROOT/man/$1" | sed '1,/^\.Bd/d; /^\.Ed/d; s/\\e/\\/g; s/\\&//g'
}

it "shows both loaders in moepack-format(5), as they are tested"
assert_equal "$(shown moepack-format.5 'In Python')" "$(sed 1d "$ROOT/tests/examples/load_rank.py")"
assert_equal "$(shown moepack-format.5 'In C')" "$(sed 1d "$ROOT/tests/examples/load_rank.c")"

finish
