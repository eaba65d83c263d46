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
"colocated_replicas"
"worst_window"
"moves"
"bytes_moved"
"source"'
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
assert_stderr_is 'moepack: eplb: counts.json: logical_count: row 1 has 1 expert, row 0 has 2'
echo '{"counts": [[1, 2]]}' | run moepack eplb - --ep 2
assert_status 3
assert_stderr_is 'moepack: eplb: standard input: counts: "logical_count" is missing'

it "names what does not divide"
put_counts
run moepack eplb counts.json --ep 4
assert_status 3
assert_stderr_is 'moepack: eplb: 6 physical experts do not divide evenly among 4 GPUs'
run moepack eplb counts.json --physical 5 --ep 5
assert_status 3
assert_stderr_is 'moepack: eplb: 5 physical experts for 6 logical ones'
run moepack eplb counts.json --ep 6 --nodes 2 --groups 3 --algorithm hierarchical
assert_status 3
assert_stderr_is 'moepack: eplb: 3 groups do not divide evenly among 2 nodes'

it "refuses contradictions"
put_counts
run moepack eplb counts.json --physical 8 --redundant 2 --ep 4
assert_status 2
assert_stderr_has '--physical and --redundant cannot be used together'
run moepack eplb counts.json --ep 3 --bars --json
assert_status 2
assert_stderr_has '--bars and --json cannot be used together'
run moepack eplb counts.json
assert_status 2

golden=$ROOT/testdata/golden/counts

it "searches for the best: hot experts get few copies, light ones fill up"
echo '{"logical_count": [[600, 560, 120, 120, 20, 10, 10, 10]]}' >counts.json
run moepack eplb counts.json --physical 16 --ep 8 --algorithm best --report --json -o best.json
assert_status 0
assert_json '.layers[0]|[.max_load, .max_load_refined < 197, .colocated_replicas, .source]' \
    '[232,true,0,"search"]'
assert_json '.layers[0]|.lower_bound <= .max_load_refined' true
assert_json '[.windows, .moves, .bytes_moved, .layers[0].moves, .mean.moves]' '[1,null,null,null,null]'
run moepack map --placement best.json --ep 8 --check
assert_status 0
assert_stderr_is ''

it "finds the same with any number of threads"
jq -c '{logical_count: .eplb[2].logical_count}' "$ROOT/testdata/golden/placement.json" >counts.json
run moepack eplb counts.json --physical 288 --ep 32 --algorithm best -j 1
cp "$stdout" expected
run moepack eplb counts.json --physical 288 --ep 32 --algorithm best -j 3
assert_status 0
assert_stdout <expected

it "minds windows of the recording"
cat >counts.json <<'END'
{"logical_count": [[[90, 2, 3, 5, 6, 7]], [[80, 1, 4, 5, 6, 7]], [[1, 2, 90, 8, 7, 5]], [[0, 0, 0, 0, 0, 0]],
 [[3, 1, 70, 6, 6, 6]]]}
END
run moepack eplb counts.json --redundant 2 --ep 4 --algorithm best --window 2 --report
assert_status 0
assert_stdout_has 'worst window'
run moepack eplb counts.json --redundant 2 --ep 4 --algorithm best --window 2 --report --json
assert_json '[.windows, .mean.worst_window < 1.7, .mean.max_load_refined < .mean.max_load]' '[2,true,true]'
run moepack eplb counts.json --redundant 2 --ep 4 --algorithm best --window 2 --objective worst \
    --report --json
assert_status 0
assert_json '.mean|.lower_bound >= 1 and .lower_bound <= .worst_window' true
jq -n -c '{logical_count: [range(70)|[[1, .]]]}' >counts.json
run moepack eplb counts.json --ep 2 --algorithm best --window 1
assert_status 2
assert_stderr_has 'moepack: eplb: 70 windows, at most 64: take 2 steps for one, or more'

it "moves few experts from a placement in use"
jq -c '{logical_count: .eplb[2].logical_count}' "$ROOT/testdata/golden/placement.json" >old.json
jq -c '.logical_count[] |= [to_entries[]|.value + (.key * 7919 % 61)]' old.json >new.json
run moepack eplb old.json --physical 288 --ep 32 --algorithm best -o old
run moepack eplb new.json --physical 288 --ep 32 --algorithm best --from old --report --json \
    --expert-bytes 1MB
assert_status 0
assert_json '(.moves > 0) and .bytes_moved == .moves * 1000000' true
all_moves=$(jq .moves "$stdout")
run moepack eplb new.json --physical 288 --ep 32 --algorithm best --from old --max-moves 2 \
    --report --json
assert_json '.layers|map(.moves <= 2)|all' true
run moepack eplb new.json --physical 288 --ep 32 --algorithm best --from old --max-moves 0 -o same
assert_status 0
assert_equal "$(jq -c . same)" "$(jq -c . old)"
run moepack eplb new.json --physical 288 --ep 32 --from old --report
assert_status 0
assert_stdout_has ' moves'
assert_equal "$((all_moves < $(sed -n 's/^\([0-9]*\) moves$/\1/p' "$stdout")))" 1

it "refuses a placement in use of other sizes"
put_counts
echo '[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]' >old
run moepack eplb counts.json --redundant 2 --ep 4 --algorithm best --from old
assert_status 3
assert_stderr_is 'moepack: eplb: the old placement has 6 experts in 6 slots, the new one 6 in 8'
echo '[[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]]' >old
run moepack eplb counts.json --ep 2 --from old
assert_status 3
assert_stderr_is 'moepack: eplb: the old placement has 3 layers, the counts 2'

it "reads the golden recordings of engines"
run moepack eplb "$golden/records-0.pt" "$golden/records-1.pt" --ep 1 --report --json
assert_status 0
assert_json '[.layers[].max_load]' "$(jq -c '."records-0.pt records-1.pt".counts as $c|
    [range(2)|. as $l|[$c[][$l]|add]|add]' "$golden/expected.json")"
run moepack eplb "$golden/global.pt" --ep 2
assert_status 5
assert_stderr_has 'global.pt: pickle: it names posix.system'
assert_equal "$(ls /tmp/moepack-golden-was-run 2>/dev/null)" '' # the pickle was not run

it "reads the statistics of TensorRT-LLM, whose layers become keys"
run moepack eplb "$golden/trtllm" --ep 2 --placement-format trtllm
assert_status 0
assert_equal "$(sed -n 's/^  \([0-9]*\):.*/\1/p' "$stdout" | tr '\n' ' ')" '1 2 10 '
run moepack eplb "$golden/trtllm" --ep 1 --report --json
assert_json '[.layers[].max_load]' "$(jq -c '.trtllm.counts as $c|
    [range(3)|. as $l|[$c[][$l]|add]|add]' "$golden/expected.json")"
assert_json '[.layers[].layer]' '[1,2,10]'
run moepack eplb "$golden/trtllm-gap" --ep 2
assert_status 3
assert_stderr_has 'trtllm-gap: iteration 51 lacks layer 10 on all ranks'
mkdir each # layer of its own
echo '{"num_experts": 128}' >each/meta_info.json
python3 - "$ROOT/tests/tools" <<'END'
import sys
sys.path.insert(0, sys.argv[1])
from tensors import write
write("each/rank0.safetensors", {f"{i}_{i}": ["I32", [128], bytes(512)] for i in range(20000)})
END
run moepack eplb each --ep 2
assert_status 3
assert_stderr_is 'moepack: eplb: each: iteration 0 lacks layer 1 on all ranks'
run moepack eplb "$golden/trtllm-shape" --ep 2
assert_status 3
assert_stderr_has 'trtllm-shape: rank1.safetensors: 50_1: shape [5], expected [6]'
run moepack eplb "$golden/trtllm" --ep 2 --experts 8
assert_status 3
assert_stderr_has 'counts of 6 experts, the model has 8'

it "reads CSV, and says what it takes for the number of experts"
run moepack eplb "$golden/ranks-0.csv" "$golden/ranks-1.csv" --ep 2 --placement-format trtllm
assert_status 0
assert_stderr_is 'moepack: eplb: the counts name experts up to 3; --experts says how many there are'
assert_equal "$(sed -n 's/^  \([0-9]*\):.*/\1/p' "$stdout" | tr '\n' ' ')" '3 5 '
run moepack eplb "$golden/ranks-0.csv" --experts 6 --ep 2 --first-layer 9 --placement-format trtllm
assert_status 0
assert_stderr_is ''
assert_equal "$(sed -n 's/^  \([0-9]*\):.*/\1/p' "$stdout" | tr '\n' ' ')" '9 10 '

it "writes the layers that it is told"
echo '{"logical_count": [[1, 2, 3, 4], [4, 3, 2, 1], [2, 2, 9, 1]]}' >counts.json
run moepack eplb counts.json --ep 2 --placement-format trtllm --layers 1,3,5 -o placement
assert_status 0
assert_equal "$(sed -n 's/^  \([0-9]*\):.*/\1/p' placement | tr '\n' ' ')" '1 3 5 '
run moepack map --placement placement --ep 2 --checkpoint-id 2
assert_status 0
assert_equal "$(cut -d: -f1 "$stdout" | tr '\n' ' ')" 'layer 1 layer 3 layer 5 '
run moepack eplb counts.json --ep 2 --layers 1,3
assert_status 3
assert_stderr_is 'moepack: eplb: --layers names 2 layers, the counts have 3'
run moepack eplb counts.json --ep 2 --layers 1,5,3
assert_status 2
run moepack eplb counts.json --ep 2 --layers 1,3,5 --first-layer 1
assert_status 2
assert_stderr_has '--layers and --first-layer cannot be used together'

it "asks the checkpoint for layers and for the size of an expert"
moepack synth -o ckpt --family deepseek_v3 --format bf16 --hidden 64 --intermediate 32 --experts 4 \
    --top-k 2 --layers 2 -q
layers=$(moepack inspect ckpt --json | jq -c '[.layers[].name]')
rows=$(jq length <<<"$layers")
jq -n -c --argjson n "$rows" '{logical_count: [range($n)|[4, 3, 2, 1]]}' >counts.json
jq -n -c --argjson n "$rows" '[range($n)|[3, 2, 1, 0]]' >old
run moepack eplb counts.json --ep 2 --model ckpt --from old --report --json
assert_status 0
assert_json '.bytes_moved == .moves * (3 * 64 * 32 * 2)' true
echo '[[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]' >counts.json
run moepack eplb counts.json --ep 2 --model ckpt
assert_status 3
assert_stderr_has 'ckpt: counts of 5 layers, the model has'

it "takes the numbers of layers from a checkpoint that has dense ones between"
echo '{"logical_count": [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]}' >counts.json
run moepack eplb counts.json --redundant 1 --ep 2 --placement-format trtllm \
    --model "$ROOT/testdata/transformers/qwen3_moe-mlp_only_layers1"
assert_status 0
assert_equal "$(sed -n 's/^  \([0-9]*\):.*/\1/p' "$stdout" | tr '\n' ' ')" '0 2 '

it "leaves layers that were never chosen out of means, and does not search them"
echo '{"logical_count": [[0, 0, 0, 0], [9, 1, 1, 1]]}' >counts.json
run moepack eplb counts.json --ep 2 --redundant 2 --algorithm best --report --json
assert_status 0
assert_json '.layers[0]|[.balancedness, .source]' '[1,"eplb"]'
assert_json '.mean.max_load_refined == .layers[1].max_load_refined' true
assert_json '.mean.balancedness == .layers[1].balancedness' true

it "warns of copies on one rank once"
echo '{"logical_count": [[1000, 1, 1], [1, 1000, 1]]}' >counts.json
run moepack eplb counts.json --physical 12 --ep 3 -o placement.json
assert_status 0
assert_stderr_is 'moepack: eplb: warning: placement: 14 copies in 2 rows on ranks that have the expert already, first in row 0: expert 0 in column 1 on rank 0'

it "draws before, EPLB and best"
put_counts
run moepack eplb counts.json --redundant 2 --ep 4 --algorithm best -o placement.json --svg loads.svg
assert_status 0
assert_file_has loads.svg '>trivial placement</text>'
assert_file_has loads.svg '>EPLB</text>'
assert_file_has loads.svg '>best</text>'

it "refuses options that need others"
put_counts
run moepack eplb counts.json --ep 3 --window 2
assert_status 2
assert_stderr_has -- '--window needs --algorithm best'
run moepack eplb counts.json --ep 3 --objective mean
assert_status 2
assert_stderr_has -- '--objective needs --algorithm best'
run moepack eplb counts.json --ep 3 --max-moves 2 --from old
assert_status 2
assert_stderr_has -- '--max-moves needs --algorithm best'
run moepack eplb counts.json --ep 3 --max-moves 2 --algorithm best
assert_status 2
assert_stderr_has -- '--max-moves needs --from'
run moepack eplb counts.json --ep 3 --refine 2 --algorithm best
assert_status 2
assert_stderr_has '--refine cannot be used together'

it "says where it cannot write"
put_counts
run moepack eplb counts.json --ep 3 -o nowhere/placement.json
assert_status 4
assert_stderr_is 'moepack: eplb: cannot write "nowhere/placement.json": No such file or directory'

it "finds storages whose keys are long"
counts=$ROOT/testdata/golden/counts/stat-int32.pt
python3 - "$counts" long.pt <<'END'
import sys, zipfile

key = b"k" * 70
with zipfile.ZipFile(sys.argv[1]) as old, zipfile.ZipFile(sys.argv[2], "w") as new:
    for name in old.namelist():
        data = old.read(name).replace(b"X\1\0\0\0" + b"0", b"X\x46\0\0\0" + key)
        new.writestr(name.replace("data/0", "data/" + key.decode()), data)
END
moepack eplb "$counts" --ep 2 >expected
run moepack eplb long.pt --ep 2
assert_status 0
assert_stdout <expected

finish
