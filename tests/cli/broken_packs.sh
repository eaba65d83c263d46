#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# What is wrong with a pack has one wording and one status, whichever command opens it.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

source=$WORK/source
moepack synth -o "$source" --family deepseek_v4 --hidden 384 --intermediate 128 --experts 3 \
    --layers 2 --top-k 2 -q
moepack repack "$source" -t megamoe-w4a8 --ep 3 -o "$WORK/pack" -q

# What a command says at last, without its own name, the pack's and `FAILED`.
says()
{
    grep -v '^FAILED' "$stdout" "$stderr" -h | sed -n 's/^moepack: [a-z]*: //; s/^pack: //; /\.json: /p' |
        tail -n 1
}

# refused STATUS WORDS: by every command that reads packs; verify counts what is malformed.
refused()
{
    local status_of_verify=$1 wording=$2

    [ "$1" -ne 3 ] || status_of_verify=1
    for command in 'inspect pack' 'unpack pack -o back' 'forward pack --layer 0 --tokens 2 -o y' \
        "diff pack $WORK/pack" "plan --model $source --pack pack --tp 3 --ep 3"; do
        # shellcheck disable=SC2086
        run moepack $command
        assert_status "$1"
        assert_equal "$command: $(says)" "$command: $wording"
    done
    run moepack verify pack
    assert_status "$status_of_verify"
    assert_equal "verify: $(says)" "verify: $wording"
    assert_equal "$(ls)" pack
}

it "takes a pack that is sealed anew"
cp -r "$WORK/pack" .
edit_manifest pack .
run moepack verify pack
assert_status 0

it "refuses a manifest that was edited"
cp -r "$WORK/pack" .
sed -i 's/"shared": "none"/"shared": "fused"/' pack/moepack.json
run moepack verify pack
refused 3 "$(says)"
assert_equal "$(says | cut -c 1-29)" 'moepack.json: changed: its di'

it "refuses a shared mode that it does not know"
cp -r "$WORK/pack" .
edit_manifest pack '.shared = "all"'
refused 5 'moepack.json: this version does not know shared mode "all"'

it "refuses a target that it does not know"
cp -r "$WORK/pack" .
edit_manifest pack '.target = "megamoe-w9"'
refused 5 'moepack.json: this version does not know target megamoe-w9/1'

it "refuses sizes over what there can be"
cp -r "$WORK/pack" .
edit_manifest pack '.model.num_experts = 4294967296'
refused 3 'moepack.json: num_experts 4294967296 is over 4294967295'

it "refuses slots that do not divide evenly among ranks"
cp -r "$WORK/pack" .
edit_manifest pack '.num_physical = 5'
refused 3 'moepack.json: 5 physical experts on 3 ranks'

it "refuses a placement that is missing"
cp -r "$WORK/pack" .
rm pack/placement.json
refused 3 'placement.json: missing'

it "refuses a placement that was edited"
cp -r "$WORK/pack" .
sed -i 's/2/1/' pack/placement.json
run moepack verify pack
refused 3 "$(says)"
assert_equal "$(says | cut -c 1-31)" 'placement.json: changed: its xx'

finish
