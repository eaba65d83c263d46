#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack route: choices of experts to choices of slots.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# Little-endian bytes of an integer: bytes WIDTH NUMBER.
bytes()
{
    local i

    for ((i = 0; i < $1; i++)); do
        # shellcheck disable=SC2059
        printf "\\x$(printf '%02x' $((($2 >> (8 * i)) & 255)))"
    done
}

# put_choices DTYPE WIDTH TOKENS K ID...: in.safetensors with these ids; weights are 0.5.
put_choices()
{
    local dtype=$1 width=$2 tokens=$3 k=$4 id count header
    shift 4
    count=$((tokens * k))
    header="{\"topk_ids\":{\"dtype\":\"$dtype\",\"shape\":[$tokens,$k],\"data_offsets\":[0,$((count * width))]},"
    header+="\"topk_weights\":{\"dtype\":\"F32\",\"shape\":[$tokens,$k],\"data_offsets\":[$((count * width)),$((count * (width + 4)))]}}"
    {
        bytes 8 ${#header}
        printf '%s' "$header"
        for id; do
            bytes "$width" "$id"
        done
        for id; do
            printf '\x00\x00\x00\x3f'
        done
    } >in.safetensors
}

# Numbers of a tensor of out.safetensors: output NAME d4|f4.
output()
{
    local length offsets

    length=$(od -An -tu8 -N8 out.safetensors)
    offsets=$(tail -c +9 out.safetensors | head -c $((length)) |
        jq -r ".$1.data_offsets|\"\(.[0]) \(.[1])\"")
    # shellcheck disable=SC2086
    set -- $2 $offsets
    od -An -v -w4 -t"$1" -j $((8 + length + $2)) -N $(($3 - $2)) out.safetensors | xargs
}

it "maps choices to slots, and appends the shared expert"
echo '[1, 2, 3, 0, 1, 0]' >placement.json
for wide in 'I32 4' 'I64 8'; do
    # shellcheck disable=SC2086
    put_choices $wide 3 2 1 0 0 -1 3 1
    run moepack route in.safetensors --placement placement.json --ep 2 --rank 1 --shared 1 \
        --routed-scaling 2.5 -o out.safetensors
    assert_status 0
    assert_stderr_is ''
    assert_stdout <<'END'
 rank     choices
    0           1 ######..................................
    1           7 ########################################
balancedness 0.5714
END
    assert_equal "$(output slot_ids d4)" '5 4 7 4 -1 7 2 5 7'
    assert_equal "$(output slot_weights f4)" '0.5 0.5 0.4 0.5 0 0.4 0.5 0.5 0.4'
done
run moepack route in.safetensors --placement placement.json --ep 2 --rank 1 --shared 1 \
    --dispatch round-robin -o out.safetensors
assert_equal "$(output slot_ids d4)" '0 6 7 4 -1 7 2 5 7'
assert_equal "$(output slot_weights f4)" '0.5 0.5 1 0.5 0 1 0.5 0.5 1'

it "agrees with the golden remap"
golden=$ROOT/testdata/golden/placement.json
for case in 0 1; do
    eval "$(jq -r ".remap[$case]|@sh \"p=\(.num_physical) ep=\(.ep) s=\(.shared) rank=\(.rank)\"" "$golden")"
    # shellcheck disable=SC2046
    put_choices I32 4 $(jq ".remap[$case].ids|length, (.[0]|length), .[][]" "$golden")
    # shellcheck disable=SC2154
    run moepack route in.safetensors --experts "$p" --ep "$ep" --shared "$s" --rank "$rank" \
        -o out.safetensors
    assert_status 0
    assert_equal "$(output slot_ids d4)" "$(jq ".remap[$case].slot_ids[][]" "$golden" | xargs)"
done

it "fills ranks with less load"
# Everyone on rank 0 chooses experts of rank 0: the shared expert goes elsewhere.
# shellcheck disable=SC2046
put_choices I32 4 80 1 $(for _ in {1..80}; do echo 0; done)
run moepack route in.safetensors --experts 4 --ep 4 --shared 1 --json
assert_json .rank_load '[160,0,0,0]'
assert_json .balancedness 0.25
run moepack route in.safetensors --experts 4 --ep 4 --shared 1 --json --waterfill static
assert_json '.rank_load[0], (.rank_load|add)' $'80\n160'
assert_json '.rank_load[1:]|min > 15' true
echo '{"routed_counts": [80, 80, 0, 0], "tokens": [80, 80, 80, 80]}' >load.json
run moepack route in.safetensors --experts 4 --ep 4 --shared 1 --json --waterfill dynamic \
    --rank-load load.json
assert_status 0
assert_json '.rank_load|add' 160

it "keeps the shared expert of a small batch at home"
put_choices I32 4 3 1 0 1 -1
echo '{"routed_counts": [80, 80, 0, 0], "tokens": [80, 80, 80, 80]}' >load.json
run moepack route in.safetensors --experts 4 --ep 4 --shared 1 --waterfill dynamic \
    --rank-load load.json --rank 2 -o out.safetensors -q
assert_status 0
assert_equal "$(output slot_ids d4)" '0 5 2 5 -1 -1'

it "says when a plan is beyond the engine"
put_choices I32 4 1 1 0
run moepack route in.safetensors --experts 32 --ep 32 --shared 1 --waterfill static --json
assert_status 0
assert_stderr_is "moepack: route: warning: waterfill over 32 ranks; the engine's 32-bit weights reach 31"

it "draws"
put_choices I32 4 2 2 0 1 2 3
run moepack route in.safetensors --experts 4 --ep 2 --svg load.svg --json
assert_status 0
assert_file_has load.svg 'largest 2, balancedness 1.000'

it "refuses choices that are no experts"
put_choices I32 4 2 2 0 1 4 -1
run moepack route in.safetensors --experts 4 --ep 2
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: route: token 1, choice 0: logical expert 4, expected -1 to 3'
put_choices I64 8 2 2 0 1 4294967296 -1
run moepack route in.safetensors --experts 4 --ep 2
assert_status 3
assert_stderr_is 'moepack: route: in.safetensors: topk_ids: token 1, choice 0: 4294967296 is not an expert'

it "refuses tensors of another kind"
put_choices F32 4 1 2 0 1
run moepack route in.safetensors --experts 4 --ep 2
assert_status 3
assert_stderr_is 'moepack: route: in.safetensors: topk_ids: F32, expected I32 or I64'
put_choices I32 4 1 2 0 1
sed -i 's/topk_weights/topk_veights/' in.safetensors
run moepack route in.safetensors --experts 4 --ep 2
assert_status 3
assert_stderr_is 'moepack: route: in.safetensors: there is no tensor "topk_weights"'
put_choices I32 4 2 2 0 1 2 3
sed -i 's/"F32","shape":\[2,2\]/"F32","shape":[4,1]/' in.safetensors
run moepack route in.safetensors --experts 4 --ep 2
assert_status 3
assert_stderr_is 'moepack: route: in.safetensors: topk_weights: shape [4, 1], that of topk_ids is [2, 2]'

it "refuses contradictions"
put_choices I32 4 1 2 0 1
run moepack route in.safetensors --ep 2
assert_status 2
assert_stderr_has 'one of --placement and --experts is required'
run moepack route in.safetensors --experts 4 --ep 2 --rank 2
assert_status 2
assert_stderr_has 'rank 2 of 2 ranks'
run moepack route in.safetensors --experts 4 --ep 2 --waterfill static
assert_status 2
assert_stderr_has 'waterfill needs exactly one shared expert on every rank'
run moepack route in.safetensors --experts 4 --ep 2 --shared 1 --waterfill dynamic
assert_status 2
assert_stderr_has 'dynamic waterfill needs the rank loads of all ranks'
echo '{}' >load.json
run moepack route in.safetensors --experts 4 --ep 2 --rank-load load.json
assert_status 2
assert_stderr_has '--rank-load is for --waterfill dynamic only'
run moepack route in.safetensors --experts 4 --ep 2 --shared 1 --waterfill dynamic \
    --rank-load load.json
assert_status 3
assert_stderr_is 'moepack: route: load.json: rank load: "routed_counts" is missing'
echo '[[0, 1], [1, 0]]' >placement.json
run moepack route in.safetensors --placement placement.json --ep 2 --layer 2
assert_status 3
assert_stderr_is 'moepack: route: layer 2: the placement has 2 rows'

it "takes the layers that a file states, for the ranks that it is for"
put_choices I32 4 1 2 0 1
echo '{"moe_layer_count": 2, "layer_list": [
    {"layer_id": 1, "device_count": 2, "device_list": [
        {"device_id": 0, "device_expert": [0, 1]}, {"device_id": 1, "device_expert": [2, 3]}]},
    {"layer_id": 3, "device_count": 2, "device_list": [
        {"device_id": 0, "device_expert": [0, 2]}, {"device_id": 1, "device_expert": [1, 3]}]}]}' >map.json
run moepack route in.safetensors --placement map.json --ep 2 --layer 1 --json
assert_status 0
cp "$stdout" of_1
run moepack route in.safetensors --placement map.json --ep 2 --layer 3 --json
assert_status 0
assert_equal "$(jq -c .rank_load of_1 "$stdout" | sort -u | wc -l)" 2
run moepack route in.safetensors --placement map.json --ep 2 --layer 0
assert_status 3
assert_stderr_is "moepack: route: layer 0: it is not one of the placement's 2 rows"
run moepack route in.safetensors --placement map.json --ep 4 --layer 1
assert_status 3
assert_stderr_is 'moepack: route: placement: device_count is 2, the number of ranks is 4'

finish
