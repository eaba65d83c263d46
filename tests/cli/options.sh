#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# How a command line is read, and which exit status says what.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

it "wants a command"
run moepack
assert_status 2
assert_stdout ''
assert_stderr_is <<'END'
moepack: no command given
try 'moepack --help'
END

it "names the nearest command for a misspelled one"
run moepack tagrets
assert_status 2
assert_stdout ''
assert_stderr_is <<'END'
moepack: 'tagrets' is not a command; did you mean 'targets'?
try 'moepack --help'
END

it "names no command for a word that is near none"
run moepack xyzzy
assert_status 2
assert_stderr_is <<'END'
moepack: 'xyzzy' is not a command
try 'moepack --help'
END

it "takes no option before the command but --help and --version"
run moepack --json targets
assert_status 2
assert_stderr_is <<'END'
moepack: unknown option '--json'
try 'moepack --help'
END

it "prints its version"
run moepack --version
assert_status 0
version=$(sed -n 's/^#define MP_VERSION *"\(.*\)"/\1/p' "$ROOT/include/moepack/base.h")
assert_stdout "moepack $version"
assert_stderr_is ''

it "refuses an unknown option"
run moepack targets --xyzzy
assert_status 2
assert_stdout ''
assert_stderr_is <<'END'
moepack: targets: unknown option '--xyzzy'
try 'moepack targets --help'
END

it "names the nearest option for a misspelled one"
run moepack targets --thraeds=3
assert_status 2
assert_stderr_is <<'END'
moepack: targets: unknown option '--thraeds'; did you mean '--threads'?
try 'moepack targets --help'
END

it "refuses an unknown letter, also behind a known one"
run moepack targets -qZ
assert_status 2
assert_stderr_is <<'END'
moepack: targets: unknown option '-Z'
try 'moepack targets --help'
END

it "refuses a value where none is taken"
run moepack targets --json=yes
assert_status 2
assert_stderr_is <<'END'
moepack: targets: option '--json' takes no value
try 'moepack targets --help'
END

it "refuses a long option without its value"
run moepack targets --threads
assert_status 2
assert_stderr_is <<'END'
moepack: targets: option '--threads' needs a value (N)
try 'moepack targets --help'
END

it "refuses a short option without its value"
run moepack targets -j
assert_status 2
assert_stderr_is <<'END'
moepack: targets: option '--threads' needs a value (N)
try 'moepack targets --help'
END

for number in 0 -1 4097 3x ' 3' 0x3 1e1 99999999999999999999 ''; do
    it "refuses '$number' as a number of threads"
    run moepack targets -j "$number"
    assert_status 2
    assert_stdout ''
    assert_stderr_is <<END
moepack: targets: option '--threads': '$number' is not a number from 1 to 4096
try 'moepack targets --help'
END
done

it "takes every form of a value"
run moepack targets -j3 -j 3 --threads 3 --threads=3 --thr=3
assert_status 0
assert_stderr_is ''

it "names the choices when a value is none of them"
run moepack targets --color blue
assert_status 2
assert_stderr_is <<'END'
moepack: targets: option '--color': 'blue' is not auto, always or never
try 'moepack targets --help'
END

it "names the nearest choice for a misspelled one"
run moepack targets --progress nevr
assert_status 2
assert_stderr_is <<'END'
moepack: targets: option '--progress': 'nevr' is unknown; did you mean 'never'?
try 'moepack targets --help'
END

# The list that the command complains about is both values, joined.
while read -r name command; do
    it "adds up lists that are given twice: $command $name"
    moepack repack "$ROOT/testdata/fixtures/v4-fp4" -t megamoe-w4a8 --ep 1 -o pack -q
    # shellcheck disable=SC2086
    run moepack $command --$name 70,0 --$name 1
    assert_status 2
    assert_stderr_has '"70,0,1"'
done <<END
layers repack $ROOT/testdata/fixtures/v4-fp4 -t megamoe-w4a8 --ep 2 -o out
ranks repack $ROOT/testdata/fixtures/v4-fp4 -t megamoe-w4a8 --ep 2 -o out
layers quantize $ROOT/testdata/fixtures/v4-fp4 --format mxfp4 -o out
layers unpack pack -o out
layers verify pack
ranks verify pack
layers diff pack pack
END

it "adds up what is to be dropped"
moepack synth -o model --family gpt_oss --format mxfp4 --hidden 384 --intermediate 128 --experts 3 \
    --layers 1 --top-k 2 -q
run moepack repack model -t megamoe-w4a8 --ep 1 --drop bias --drop input_scale -o out
assert_status 0
assert_equal "$(jq -r .dropped out/moepack.json)" bias,input_scale
assert_equal "$(jq -r .command out/moepack.json)" \
    'moepack repack model --target megamoe-w4a8 --ep 1 --drop bias,input_scale'

it "counts the last of an option that is no list"
run moepack repack "$ROOT/testdata/fixtures/v4-fp4" -t megamoe-w4a4 -t megamoe-w4a8 --ep 7 --ep 1 -o out
assert_status 0
assert_equal "$(jq -c '[.target, .ep_size]' out/moepack.json)" '["megamoe-w4a8",1]'

it "refuses an argument too many"
run moepack targets all
assert_status 2
assert_stderr_is <<'END'
moepack: targets: unexpected argument 'all'
try 'moepack targets --help'
END

it "refuses a missing argument"
run moepack completion -q
assert_status 2
assert_stderr_is <<'END'
moepack: completion: argument SHELL is missing
try 'moepack completion --help'
END

it "takes options behind arguments"
run moepack completion bash --quiet
assert_status 0
assert_stdout_has 'complete -o bashdefault'

it "takes what follows -- for arguments"
run moepack completion -- --json
assert_status 2
assert_stderr_is <<'END'
moepack: completion: '--json' is not bash, zsh or fish
try 'moepack completion --help'
END

it "takes a single dash for an argument"
run moepack targets -
assert_status 2
assert_stderr_has "unexpected argument '-'"

it "reports a full disk"
run sh -c '"$1" targets >/dev/full' sh "$MOEPACK"
assert_status 4
assert_stderr_is 'moepack: targets: standard output: No space left on device'

it "reports a full disk that only the last flush meets"
run sh -c '"$1" --version >/dev/full' sh "$MOEPACK"
assert_status 4
assert_stderr_is 'moepack: standard output: No space left on device'

it "reports a closed standard output"
run sh -c '"$1" targets >&-' sh "$MOEPACK"
assert_status 4
assert_stderr_is 'moepack: targets: standard output: Bad file descriptor'

it "reports a usage error also where standard output is closed"
run sh -c '"$1" targets all >&-' sh "$MOEPACK"
assert_status 2
assert_stderr_has "unexpected argument 'all'"

v4=$ROOT/testdata/fixtures/v4-fp4
while read -r command; do
    it "wants MOEPACK_CPU to name a level: $command"
    # shellcheck disable=SC2086
    run env MOEPACK_CPU=sse9 "$MOEPACK" $command
    assert_status 2
    assert_stdout ''
    assert_stderr_is <<END
moepack: ${command%% *}: MOEPACK_CPU: 'sse9' is not scalar, avx2, avx512 or neon
try 'moepack ${command%% *} --help'
END
    [ ! -e out ]
    assert $? "out is there"
done <<END
repack $v4 -t megamoe-w4a8 --ep 1 -o out
unpack pack -o out
quantize $v4 --format mxfp4 -o out
synth -o out --family gpt_oss
verify pack
forward $v4 --layer 0 --tokens 1 -o out
diff $v4 $v4
END

it "does not look at MOEPACK_CPU where nothing is computed"
run env MOEPACK_CPU=sse9 "$MOEPACK" inspect "$v4"
assert_status 0
run env MOEPACK_CPU=sse9 "$MOEPACK" verify --help
assert_status 0

it "takes the names of levels that this processor lacks"
for level in scalar avx2 avx512 neon ''; do
    run env MOEPACK_CPU=$level "$MOEPACK" diff "$v4" "$v4"
    assert_status 0
done

while read -r command; do
    it "says that there is no such directory: $command"
    # shellcheck disable=SC2086
    run moepack $command
    assert_status 4
    assert_equal "$(sed 's/.*\(cannot open\)/\1/' "$stderr")" 'cannot open "missing": No such file or directory'
done <<END
inspect missing
verify missing
unpack missing -o out
unpack missing --layers 0 -o out
diff missing $v4
diff $v4 missing
forward missing --layer 0 --tokens 1 -o out
plan --model missing --backend megamoe
plan --model $v4 --backend megamoe --tp 1 --pack missing
repack missing -t megamoe-w4a8 --ep 1 -o out
quantize missing --format mxfp4 -o out
END

it "tells a missing pack from a directory that is none"
mkdir empty
for command in 'verify empty' 'unpack empty -o out' 'unpack empty --layers 0 -o out' \
    "plan --model $v4 --backend megamoe --tp 1 --pack empty"; do
    # shellcheck disable=SC2086
    run moepack $command
    assert_status 3
    assert_stderr_is "moepack: ${command%% *}: \"empty\" is not a pack: it has no moepack.json"
done

it "dies quietly of SIGPIPE"
# shellcheck disable=SC2016
run env --default-signal=PIPE bash -c '{ sleep 0.2; "$1" targets; echo "status $?" >&2; } | true' \
    bash "$MOEPACK"
assert_stderr_is 'status 141'

it "colors on request only"
escape=$(printf '\033')
run moepack targets --color always
assert_stdout_has "${escape}[1m"
run moepack targets
assert_equal "$(grep -c "$escape" "$stdout")" 0
run env NO_COLOR=1 "$MOEPACK" targets --color always
assert_stdout_has "${escape}[1m"

finish
