#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack map: the table of slots.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

put_placement()
{
    echo '{"physical_to_logical_map": [[2, 0, 1, 2, 0, 3], [3, 2, 1, 0, 3, 3]]}' >placement.json
}

it "prints a table of slots"
put_placement
run moepack map --placement placement.json --ep 2 --shared 1 --layer 0
assert_status 0
assert_stderr_is 'moepack: map: warning: placement: row 1: 1 copy on a rank that has the expert already, first expert 3 in column 5 on rank 1'
assert_stdout <<'END'
layer 0
   slot   rank  local  kind    expert  replica
      0      0      0  routed       2        0
      1      0      1  routed       0        0
      2      0      2  routed       1        0
      3      0      3  shared       4        0
      4      1      0  routed       2        1
      5      1      1  routed       0        1
      6      1      2  routed       3        0
      7      1      3  shared       4        1
END

it "prints it in JSON"
put_placement
run moepack map --placement placement.json --ep 2 --shared 1 --json -q
assert_status 0
assert_stderr_is ''
assert_json 'del(.layers)' \
    '{"num_logical":4,"num_physical":6,"ep_size":2,"shared":1,"slots_per_rank":4}'
assert_json '.layers|map(.layer)' '[0,1]'
assert_json '.layers[1].slots[7]' \
    '{"slot":7,"rank":1,"local":3,"kind":"shared","logical":4,"replica":1}'
assert_json '[.layers[1].slots[]|select(.kind == "routed").logical]' '[3,2,1,0,3,3]'

it "gives the golden slots of every checkpoint id"
golden=$ROOT/testdata/golden/placement.json
for case in 0 1 2 3; do
    eval "$(jq -r ".slots[$case]|@sh \"n=\(.num_logical) r=\(.redundant) ep=\(.ep) s=\(.shared)\"" "$golden")"
    for id in $(jq -r ".slots[$case].checkpoint_id_to_slots|keys_unsorted[]" "$golden"); do
        # shellcheck disable=SC2154
        run moepack map --experts "$n" --redundant "$r" --ep "$ep" --shared "$s" \
            --checkpoint-id "$id" --json -q
        assert_equal "$(jq -c '.layers[0].slots' "$stdout")" \
            "$(jq -c ".slots[$case].checkpoint_id_to_slots[\"$id\"]" "$golden")"
    done
done

it "tells replicas from shared experts: the boundary is N, the arithmetic goes by P"
run moepack map --experts 8 --redundant 4 --ep 4 --shared 1 --checkpoint-id 8 --json
assert_json . '{"checkpoint_id":8,"kind":"shared","layers":[{"layer":0,"slots":[3,7,11,15]}]}'
run moepack map --experts 8 --redundant 4 --ep 4 --shared 1 --checkpoint-id 0 --json
assert_json . '{"checkpoint_id":0,"kind":"routed","layers":[{"layer":0,"slots":[0,10]}]}'
run moepack map --experts 8 --redundant 4 --ep 4 --shared 1 --checkpoint-id 0
assert_stdout 'layer 0: 0 10'

it "puts shared experts once behind all"
run moepack map --experts 4 --redundant 2 --ep 2 --shared 2 --shared-once --checkpoint-id 5
assert_stdout 'layer 0: 7'
run moepack map --experts 4 --ep 2 --shared 1 --shared-once --json
assert_json '.layers[0].slots|map([.rank,.local,.logical])' \
    '[[0,0,0],[0,1,1],[1,0,2],[1,1,3],[1,2,4]]'

it "lets one row serve every layer"
echo '[1, 0]' >placement.json
run moepack map --placement placement.json --layer 60
assert_status 0
assert_stdout_has 'layer 60'

it "validates only"
put_placement
run moepack map --placement placement.json --ep 2 --check -q
assert_status 0
assert_stdout '2 rows, 4 logical and 6 physical experts, 2 ranks of 3 slots'
run moepack map --placement placement.json --ep 2 --check --json -q
assert_json . \
    '{"ok":true,"rows":2,"num_logical":4,"num_physical":6,"ep_size":2,"warnings":1}'

it "says nothing of copies on a single rank"
put_placement
run moepack map --placement placement.json --check
assert_status 0
assert_stderr_is ''

it "reads a placement from standard input"
echo '[[0, 1]]' | run moepack map --placement - --check
assert_status 0
assert_stdout '1 row, 2 logical and 2 physical experts, 1 rank of 2 slots'

it "names row and column of what is wrong"
echo '{"physical_to_logical_map": [[0, 1, 2], [2, 1, 3]]}' >placement.json
run moepack map --placement placement.json --experts 3 --check
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: map: placement.json: placement: row 1, column 2: logical expert 3, expected 0 to 2'
echo '{"physical_to_logical_map": [[0, 1], [0]]}' >placement.json
run moepack map --placement placement.json --check
assert_status 3
assert_stderr_is 'moepack: map: placement.json: placement: row 1 has 1 columns, row 0 has 2'
echo '{"physical_to_logical_map": [[0, 1], [0, 0]]}' >placement.json
run moepack map --placement placement.json --check
assert_status 3
assert_stderr_is 'moepack: map: placement.json: placement: row 1: logical expert 1 is in none of the 2 columns'
echo '{"physical_to_logical_map": [[0]], "rank": 0}' >placement.json
run moepack map --placement placement.json --check
assert_status 3
assert_stderr_is 'moepack: map: placement.json: placement: unknown key "rank"'
printf 'num_slots: 2\ninitial_global_assignments:\n  3: [0, x]\n' >placement.yaml
run moepack map --placement placement.yaml --check
assert_status 3
assert_stderr_is 'moepack: map: placement.yaml: placement: line 3: expert is not an integer'

it "refuses a PyTorch file with a hint"
printf 'PK\003\004xxxx' >placement.pt
run moepack map --placement placement.pt --check
assert_status 5
assert_stderr_has 'this is a PyTorch .pt file; turn it into JSON with: python -c'

it "refuses ranks that do not divide, layers and ids that are not there"
put_placement
run moepack map --placement placement.json --ep 4
assert_status 3
assert_stderr_is 'moepack: map: slots: 6 physical experts do not divide evenly among 4 ranks'
run moepack map --placement placement.json --layer 2
assert_status 3
assert_stderr_is 'moepack: map: layer 2: the placement has 2 rows'
run moepack map --placement placement.json --shared 1 --checkpoint-id 5
assert_status 3
assert_stderr_is 'moepack: map: checkpoint id 5: there are 4 logical experts and 1 shared ones'

it "refuses contradictions"
put_placement
run moepack map
assert_status 2
assert_stderr_has 'one of --placement and --experts is required'
run moepack map --placement placement.json --redundant 2
assert_status 2
assert_stderr_has '--redundant and --placement cannot be used together'
run moepack map --placement placement.json --check --checkpoint-id 1
assert_status 2
assert_stderr_has '--check and --checkpoint-id cannot be used together'

it "takes the layers that a file states, with gaps"
printf 'num_slots: 4\ninitial_global_assignments:\n  1: [0, 1, 2, 3]\n  3: [3, 2, 1, 0]\n  5: [1, 0, 3, 2]\n' >eplb.yaml
run moepack map --placement eplb.yaml --ep 2 --check
assert_status 0
run moepack map --placement eplb.yaml --ep 2 --layer 3 --checkpoint-id 3
assert_status 0
assert_stdout <<'END'
layer 3: 0
END
run moepack map --placement eplb.yaml --ep 2 --checkpoint-id 0 --json
assert_json '[.layers[].layer]' '[1,3,5]'
run moepack map --placement eplb.yaml --ep 2 --layer 2
assert_status 3
assert_stderr_is "moepack: map: layer 2: it is not one of the placement's 3 rows"

it "refuses a file that is for another number of ranks"
echo '{"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [0, 1, 2]}, {"device_id": 1, "device_expert": [3, 0, 1]}]}]}' >map.json
run moepack map --placement map.json --ep 3 --check
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: map: placement: device_count is 2, the number of ranks is 3'
run moepack map --placement map.json --ep 2 --check
assert_status 0

finish
