#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# moepack eplb: placements from load counts.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

# Two layers of six experts; the first has one that carries half of all.
put_counts()
{
    echo '{"logical_count": [[50, 9, 8, 7, 6, 20], [3, 3, 3, 3, 3, 3]]}' >counts.json
}

it "prints a placement for SGLang"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4
assert_status 0
assert_stderr_is ''
assert_json . '{"physical_to_logical_map":[[5,4,0,1,0,2,0,3],[2,0,3,1,4,0,5,1]]}'
assert_json 'keys' '["physical_to_logical_map"]'

it "matches the golden placement of 288 experts on 32 GPUs in 4 nodes"
jq '{logical_count: .eplb[2].logical_count}' "$ROOT/testdata/golden/placement.json" >counts.json
run moepack eplb counts.json --physical 288 --ep 32 --nodes 4 --groups 8 \
    --algorithm hierarchical -q
assert_status 0
assert_stderr_is ''
assert_equal "$(jq -c .physical_to_logical_map "$stdout")" \
    "$(jq -c '.eplb[2].physical_to_logical_map' "$ROOT/testdata/golden/placement.json")"

it "adds the steps of a recording up"
echo '{"logical_count": [[[50, 0, 8, 7, 6, 20]], [[0, 9, 0, 0, 0, 0]]]}' >counts.json
run moepack eplb counts.json --redundant 2 --ep 4
assert_status 0
assert_json . '{"physical_to_logical_map":[[5,4,0,1,0,2,0,3]]}'

it "writes the form of every engine, which map reads"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 -o sglang
assert_status 0
assert_stdout ''
run moepack map --placement sglang --ep 4 --json
cp "$stdout" expected
for format in trtllm vllm-ascend vllm; do
    run moepack eplb counts.json --redundant 2 --ep 4 -o placement --placement-format $format
    assert_status 0
    run moepack map --placement placement --ep 4 --json
    assert_stdout <expected
done

it "names model layers for TensorRT-LLM"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 --placement-format trtllm --first-layer 3
assert_stdout <<'END'
num_slots: 8
initial_global_assignments:
  3: [5, 4, 0, 1, 0, 2, 0, 3]
  4: [2, 0, 3, 1, 4, 0, 5, 1]
END

it "reports each layer"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 --report -o placement.json
assert_status 0
assert_stdout <<'END'
         balancedness                 largest GPU load
layer  trivial     eplb  refined          eplb       refined   lower bound  colocated
    0   0.8475   0.9615   0.9615            26            26            25          0
    1   0.7500   1.0000   1.0000           4.5           4.5           4.5          0
 mean   0.7987   0.9808   0.9808         15.25         15.25         14.75       0.00
END
assert_file_has placement.json '[5, 4, 0, 1, 0, 2, 0, 3]'

it "reports in JSON"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 --report --json
assert_status 0
assert_json '.layers[0]|keys_unsorted|.[]' \
    '"layer"
"balancedness_trivial"
"balancedness"
"balancedness_refined"
"max_load"
"max_load_refined"
"lower_bound"
"colocated_replicas"'
assert_json '.layers[1]|[.layer,.max_load,.lower_bound,.colocated_replicas]' '[1,4.5,4.5,0]'
assert_json '.mean|.max_load' 15.25
assert_json '.layers|map(.balancedness_refined == .balancedness)' '[true,true]'

it "refines: lowers the largest load"
echo '{"logical_count": [[19, 15, 14, 13, 13, 5]]}' >counts.json
run moepack eplb counts.json --ep 2 --report --json --refine 9
assert_status 0
assert_json '.layers[0]|[.max_load == 42, .max_load_refined == 40, .lower_bound == 39.5]' \
    '[true,true,true]'

it "refines: parts copies where the largest load allows"
echo '{"logical_count": [[41, 39, 39, 38, 31, 5]]}' >counts.json
run moepack eplb counts.json --redundant 3 --ep 3 --report --json
assert_stderr_has 'row 0: 1 copy on a rank that has the expert already'
assert_json '.layers[0]|[.max_load_refined == 70, .colocated_replicas]' '[true,1]'
run moepack eplb counts.json --redundant 3 --ep 3 --report --json --refine 50
assert_status 0
assert_stderr_is ''
assert_json '.layers[0]|[.max_load_refined == 70, .colocated_replicas]' '[true,0]'

it "warns of copies side by side, and can be quiet"
echo '{"logical_count": [[1000, 1, 1]]}' >counts.json
run moepack eplb counts.json --physical 12 --ep 3 -o placement.json
assert_status 0
assert_stderr_is 'moepack: eplb: warning: placement: row 0: 7 copies on a rank that has the expert already, first expert 0 in column 1 on rank 0'
run moepack eplb counts.json --physical 12 --ep 3 -o placement.json -q
assert_stderr_is ''

it "draws"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 --bars --svg loads.svg
assert_status 0
assert_stdout <<'END'
layer  trivial                         balanced
    0  0.847 ####################....  0.962 #######################.
    1  0.750 ##################......  1.000 ########################
 mean  0.799 ###################.....  0.981 ########################
END
assert_file_has loads.svg '<svg xmlns="http://www.w3.org/2000/svg"'
assert_file_has loads.svg 'mean balancedness 0.981'

it "reads standard input"
put_counts
run moepack eplb - --ep 3 <counts.json
assert_status 0
assert_json '.physical_to_logical_map|length' 2

it "names what is wrong with the counts"
echo '{"logical_count": [[1, 2], [3, -4]]}' >counts.json
run moepack eplb counts.json --ep 2
assert_status 3
assert_stdout ''
assert_stderr_is 'moepack: eplb: counts.json: logical_count: row 1, column 1: -4, expected 0 or more'
echo '{"logical_count": [[1, 2], [3]]}' >counts.json
run moepack eplb counts.json --ep 2
assert_status 3
assert_stderr_is 'moepack: eplb: counts.json: logical_count: row 1 has 1 experts, row 0 has 2'
echo '{"counts": [[1, 2]]}' | run moepack eplb - --ep 2
assert_status 3
assert_stderr_is 'moepack: eplb: standard input: counts: "logical_count" is missing'

it "names what does not divide"
put_counts
run moepack eplb counts.json --ep 4
assert_status 3
assert_stderr_is 'moepack: eplb: 6 physical experts do not divide among 4 GPUs'
run moepack eplb counts.json --physical 5 --ep 5
assert_status 3
assert_stderr_is 'moepack: eplb: 5 physical experts for 6 logical ones'
run moepack eplb counts.json --ep 6 --nodes 2 --groups 3 --algorithm hierarchical
assert_status 3
assert_stderr_is 'moepack: eplb: 3 groups do not divide among 2 nodes'

it "refuses contradictions"
put_counts
run moepack eplb counts.json --physical 8 --redundant 2 --ep 4
assert_status 2
assert_stderr_has '--physical and --redundant contradict each other'
run moepack eplb counts.json --ep 3 --bars --json
assert_status 2
assert_stderr_has '--bars and --json contradict each other'
run moepack eplb counts.json
assert_status 2

it "says where it cannot write"
put_counts
run moepack eplb counts.json --ep 3 -o nowhere/placement.json
assert_status 4
assert_stderr_is 'moepack: eplb: cannot write "nowhere/placement.json": No such file or directory'

finish
