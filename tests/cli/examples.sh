#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Every example of the manual pages, typed as it stands there: the literal blocks of EXAMPLES, all of
# moepack-cluster(7), and those of moepack-layouts(7) that are commands. The files that they go by are small ones of the same names; what
# is not moepack's and does not run everywhere (schedulers, copies to other machines, engines) is a
# stand-in that looks at its arguments.
#
# A block whose lines begin with "$ " shows what its commands print, which has to be what they do
# print; a line of three points stands for the rest. Any other block is a script. Every moepack in
# it has to run, and to end with 0 unless `promised` says otherwise.
# shellcheck source=tests/cli/lib.sh
. "$(dirname "$0")/lib.sh"

tools=$ROOT/tests/tools
export MOEPACK log=$WORK/log
export PATH=$WORK/bin:$PATH

# ---------------------------------------------------------------------------
# Programs
# ---------------------------------------------------------------------------

# stand_in NAME: standard input becomes a program of this name, which is found first.
stand_in()
{
    mkdir -p "$WORK/bin"
    { echo '#!/bin/bash' && echo 'set -eu' && cat; } >"$WORK/bin/$1"
    chmod +x "$WORK/bin/$1"
}

stand_in moepack <<'END'
status=0
"$MOEPACK" "$@" || status=$?
echo "$status moepack $*" >>"$log"
exit $status
END
stand_in man <<'END'
[ "${*: -1}" = moepack-repack ]
END
stand_in rsync <<'END'
[ "$1" = -a ] && mkdir -p "${*: -1}"
cp -r "${@:2}"
END
stand_in s5cmd <<'END'
[ $# = 3 ] && [ "$1" = cp ] && [ -f "$2" ] && [[ $3 == s3://bucket/packed/part-* ]]
END
# Each node has a /local of its own.
stand_in srun <<'END'
[ "$1 $2 $3" = '--nodes=4 --ntasks=4 --ntasks-per-node=1' ]
for SLURM_NODEID in 0 1 2 3; do
    export SLURM_NODEID
    mkdir "node-$SLURM_NODEID" && ln -sfn "node-$SLURM_NODEID" local
    "${@:4}"
done
END
stand_in sbatch <<'END'
case $* in
'--parsable pack.sh')
    echo 17
    for SLURM_ARRAY_TASK_ID in ${tasks:-$(seq 16)}; do
        export SLURM_ARRAY_TASK_ID SLURM_ARRAY_TASK_MIN=1 SLURM_ARRAY_TASK_MAX=16 \
            SLURM_ARRAY_TASK_COUNT=16 SLURM_CPUS_PER_TASK=1
        sh pack.sh >&2
    done
    ;;
'--dependency=afterok:17 --wrap='*) sh -c "${2#--wrap=}" ;;
*) exit 2 ;;
esac
END
stand_in parallel <<'END'
[ "$1 $2 $3 $4 $5 $6" = '--sshloginfile hosts -j 1 --retries 3' ] && [ -f hosts ]
shift 6
command=()
while [ "$1" != ::: ]; do
    command+=("$1")
    shift
done
shift
for part; do
    "${command[@]/\{\}/$part}"
done
END

# ---------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------

small()
{
    "$MOEPACK" synth -q --hidden 128 --intermediate 128 --top-k 2 --vocab 16 "$@"
}

repack()
{
    "$MOEPACK" repack -q "$@"
}

# steps NAME...: versions of one checkpoint.
steps()
{
    local name seed=0

    for name; do
        small --family qwen3_moe --experts 4 --layers 2 --seed $((seed++)) -o "$name"
    done
}

delta()
{
    "$MOEPACK" delta "$1" "$2" --version "$3" -q -o "$4"
}

# counts LAYERS EXPERTS: ./counts.json
counts()
{
    jq -nc --argjson layers "$1" --argjson experts "$2" '{logical_count:
        [range($layers) | . as $l | [range($experts) | (. * 37 + $l * 11) % 101 + 1]]}' >counts.json
}

# placement LAYERS EXPERTS SLOTS: SGLang's form of one in which experts follow each other.
placement()
{
    jq -nc --argjson layers "$1" --argjson experts "$2" --argjson slots "$3" \
        '{physical_to_logical_map: [range($layers) | [range($slots) | . % $experts]]}'
}

# What SGLang's recorder leaves on eight ranks: 200 passes of 2 layers and 96 slots of 64 experts.
recordings()
{
    python3 - <<'END'
import pickle, struct, sys, types, zipfile

class Storage:
    pass

def rebuild(*arguments):
    pass

for name, item in ("IntStorage", Storage), ("_rebuild_tensor_v2", rebuild):
    item.__name__ = item.__qualname__ = name
    item.__module__ = "torch" if item is Storage else "torch._utils"
    setattr(sys.modules.setdefault(item.__module__, types.ModuleType(item.__module__)), name, item)

class Tensor:
    def __init__(self, rows):
        self.rows = rows

    def __reduce__(self):
        shape = (len(self.rows), len(self.rows[0]))
        return rebuild, (self, 0, shape, (shape[1], 1), False, ())

class Pickler(pickle.Pickler):
    depth = 0

    def persistent_id(self, item):
        # The tensor inside of its own arguments is its storage.
        if not isinstance(item, Tensor):
            return None
        self.depth = 1 - self.depth
        if self.depth:
            return None
        stored.append(struct.pack(f"<{sum(map(len, item.rows))}i", *(n for row in item.rows for n in row)))
        return ("storage", Storage, str(len(stored) - 1), "cpu", len(stored[-1]) // 4)

for rank in range(8):
    stored = []
    with zipfile.ZipFile(f"rank{rank}.pt", "w") as file:
        with file.open("rank/data.pkl", "w") as out:
            Pickler(out, 2).dump({
                "records": [{"forward_pass_id": i, "rank": rank, "global_physical_count":
                             Tensor([[(slot * 7 + layer * 3 + rank + i // 100) % 13 for slot in range(96)]
                                     for layer in range(2)])} for i in range(200)],
                "last_physical_to_logical_map": Tensor([[slot % 64 for slot in range(96)]] * 2)})
        for i, data in enumerate(stored):
            file.writestr(f"rank/data/{i}", data)
        file.writestr("rank/version", "3\n")
END
}

# ./layer12.safetensors: eight experts each of 40 tokens.
choices()
{
    PYTHONPATH=$tools python3 - <<'END'
import struct
from tensors import write
ids = [(token * 5 + i * i) % 32 for token in range(40) for i in range(8)]
write("layer12.safetensors", {"topk_ids": ["I32", [40, 8], struct.pack("<320i", *ids)],
                              "topk_weights": ["F32", [40, 8], struct.pack("<320f", *[0.125] * 320)]})
END
}

# presharded CKPT: a dump of it, for 8 ranks of tensor parallelism, as one of DeepSeek-V3. What its
# name is, its content decides: the script is to have that.
presharded()
{
    local made

    made=$(python3 "$tools/snapshots.py" presharded "$1" DeepSeek-V3/presharded --tp 8)
    sed -i "s/TP-8-sig-0123456789abcdef/${made##*/}/" script
}

# What decides of DeepSeek V4 Flash's config.json.
flash_config()
{
    jq -n '{architectures: ["DeepseekV4ForCausalLM"], hidden_act: "silu", model_type: "deepseek_v4",
        hidden_size: 4096, moe_intermediate_size: 2048, num_experts_per_tok: 6, num_hidden_layers: 43,
        n_routed_experts: 256, n_shared_experts: 1, num_nextn_predict_layers: 1,
        torch_dtype: "bfloat16", expert_dtype: "fp4", quantization_config: {quant_method: "fp8",
            fmt: "e4m3", scale_fmt: "ue8m0", weight_block_size: [128, 128]}}' >config.json
}

# One layer of its sizes, as the pages show it, and packed; two examples make them.
large=$WORK/large
mkdir "$large"

v4=(--family deepseek_v4 --mtp 0 --hash-layers 0)

# What a block goes by, in this directory; a block without a line here goes by nothing.
prepare()
{
    case $1 in
    apply.1-1)
        steps weight_v000006 newer
        delta weight_v000006 newer 7 weight_v000007
        ;;
    checksums.1-1)
        steps checkpoint
        repack checkpoint -t deepep-bf16 --ep 2 -o packed
        ;;
    compress.1-1) small --family deepseek_v3 --format bf16 --experts 8 --layers 2 -o DeepSeek-V3-BF16 ;;
    decompress.1-1)
        steps checkpoint
        repack checkpoint -t deepep-bf16 --ep 2 --zstd -o packed.zst
        ;;
    delta.1-1)
        steps step-6 step-7 step-8
        mkdir pub
        ;;
    delta.1-[23])
        steps weight_v000006.full weight_v000007.full
        mkdir pub
        delta weight_v000006.full weight_v000007.full 7 pub/weight_v000007
        repack weight_v000006.full -t deepep-bf16 --ep 2 -o packed-6
        if [ "$1" = delta.1-2 ]; then rm -r weight_v000007.full; else mv pub/weight_v000007 .; fi
        ;;
    delta.1-4 | fold.1-1)
        steps weight_v000006.full step-7 step-8 step-9
        delta weight_v000006.full step-7 7 weight_v000007
        delta step-7 step-8 8 weight_v000008
        delta step-8 step-9 9 weight_v000009
        ;;
    delta.1-5)
        steps step-6 step-7
        mkdir pub local
        repack step-6 -t deepep-bf16 --ep 4 -o packed-6
        repack step-7 -t deepep-bf16 --ep 4 -o packed-7
        repack step-6 -t deepep-bf16 --ep 4 --ranks 3 -o local/packed-6
        ;;
    diff.1-1)
        small "${v4[@]}" --experts 4 --layers 2 -o DeepSeek-V4-Flash
        "$MOEPACK" quantize DeepSeek-V4-Flash -f nvfp4 -q -o DeepSeek-V4-Flash-NVFP4
        ;;
    diff.1-2)
        small --family deepseek_v3 --intermediate 1024 --experts 4 --layers 1 -o DeepSeek-V3
        presharded DeepSeek-V3
        ;;
    diff.1-3)
        small "${v4[@]}" --experts 32 --layers 1 -o v4-flash
        repack v4-flash -t megamoe-w4a8 --ep 8 -o packed-ep8
        repack v4-flash -t megamoe-w4a8 --ep 32 -o packed-ep32
        ;;
    diff.1-4) steps A B ;;
    eplb.1-1)
        small "${v4[@]}" --experts 64 --layers 2 -o DeepSeek-V4-Flash
        counts 2 64
        ;;
    eplb.1-2)
        small --family deepseek_v3 --experts 64 --layers 5 --dense 3 --dense-intermediate 128 -o DeepSeek-V3
        recordings
        placement 2 64 96 >placement.json
        ;;
    eplb.1-3) counts 6 64 ;;
    extract.1-1)
        small "${v4[@]}" --experts 18 --layers 4 -o v4-flash
        repack v4-flash -t megamoe-w4a8 --ep 2 -o packed
        ;;
    finish.1-1) small "${v4[@]}" --experts 8 --layers 2 -o v4-flash ;;
    forward.1-[12])
        small "${v4[@]}" --experts 4 --layers 13 -o DeepSeek-V4-Flash
        repack DeepSeek-V4-Flash -t megamoe-w4a8 --ep 2 -o packed
        [ "$1" = forward.1-1 ] ||
            "$MOEPACK" forward DeepSeek-V4-Flash --layer 12 --tokens 64 -q -o exact.safetensors >/dev/null
        ;;
    inspect.1-[12] | repack.1-1)
        ln -s "$large/v4-flash" .
        [ "$1" = repack.1-1 ] || ln -s "$large/packed" .
        ;;
    inspect.1-[3-6])
        small "${v4[@]}" --experts 18 --layers 4 -o v4-flash
        repack v4-flash -t megamoe-w4a8 --ep 2 -o packed
        ;;
    format.5-[2-5]) ln -s "$large/packed" . ;;
    layouts.7-7) bash "$WORK/blocks/6" ;;
    map.1-2) placement 13 64 96 >placement.json ;;
    plan.1-[1-5])
        flash_config
        case $1 in
        *-3) sed -i 's/"quant_method"/"quant_algo": "MIXED_PRECISION", "moe_quant_algo": "NVFP4", &/' config.json ;;
        *-4)
            jq -n '{model_type: "deepseek_v3", hidden_size: 7168, moe_intermediate_size: 2048,
                num_experts_per_tok: 8, num_hidden_layers: 61, n_routed_experts: 256,
                n_shared_experts: 1, first_k_dense_replace: 3, num_nextn_predict_layers: 1,
                quantization_config: {quant_method: "fp8", weight_block_size: [128, 128]}}' >config.json
            ;;
        *-5)
            printf 'SGLANG_OPT_DEEPGEMM_MEGA_MOE_%s\n' USE_FP4_ACTS=1 USE_MXF4_KIND=1 \
                NUM_MAX_TOKENS_PER_RANK=8192 >w4a4.env
            ;;
        esac
        ;;
    plan.1-6) flash_config ;;
    plan.1-7)
        small "${v4[@]}" --hidden 512 --intermediate 512 --experts 8 --layers 2 -o checkpoint
        repack checkpoint -t megamoe-w4a8 --ep 8 -o packed
        export MODEL=/models/v4
        stand_in python3 <<'END'
[ "$MOEPACK_PLACEMENT" = "$PWD/packed/placement.json" ] || [ "$MOEPACK_PLACEMENT" = packed/placement.json ]
[ -f "$MOEPACK_PLACEMENT" ]
[ "$*" = "-m sglang.launch_server --model-path /models/v4 --tp 8 --moe-a2a-backend megamoe\
 --disaggregation-mode decode --cuda-graph-max-bs-decode 1024\
 --init-expert-location $MOEPACK_PLACEMENT" ]
touch launched
END
        ;;
    quantize.1-[12]) small --family qwen3_moe --experts 4 --layers 2 -o Qwen3-30B-A3B ;;
    quantize.1-3) small --family deepseek_v4 --experts 2 --layers 43 --mtp 1 -o DeepSeek-V4-Flash ;;
    repack.1-2)
        small "${v4[@]}" --experts 8 --layers 2 -o v4-flash
        counts 2 8
        ;;
    repack.1-3)
        small --family deepseek_v3 --experts 4 --layers 61 --dense 3 --dense-intermediate 128 --mtp 1 \
            -o DeepSeek-V3
        placement 61 4 32 >recorded.json
        ;;
    repack.1-4) small --family deepseek_v4 --experts 4 --layers 43 --mtp 1 -o v4-flash ;;
    repack.1-5)
        mkdir models
        small "${v4[@]}" --experts 8 --layers 1 -o models/DeepSeek-V4-Flash
        placement 1 8 32 >models/placement.json
        ;;
    route.1-1)
        choices
        placement 13 32 48 >placement.json
        ;;
    unpack.1-[12])
        small "${v4[@]}" --experts 8 --layers 2 -o checkpoint
        repack checkpoint -t megamoe-w4a8 --ep 2 -o packed
        ;;
    verify.1-[1256])
        small "${v4[@]}" --experts 8 --layers 2 -o DeepSeek-V4-Flash
        repack DeepSeek-V4-Flash -t megamoe-w4a8 --ep 4 -o packed
        [ "$1" != verify.1-6 ] || "$tools/tensors.py" packed/rank-002/model-00001-of-00001.safetensors \
            flip layers.1.experts.l2_weight 77 4
        ;;
    verify.1-3)
        small --family deepseek_v3 --intermediate 1024 --experts 4 --layers 1 -o DeepSeek-V3
        small --family deepseek_v3 --intermediate 1024 --experts 4 --layers 1 --seed 1 -o another
        presharded another
        ;;
    verify.1-4)
        small --family qwen3_moe --experts 4 --layers 2 -o Qwen3-30B-A3B
        "$MOEPACK" quantize Qwen3-30B-A3B -f nvfp4 -q -o Qwen3-30B-A3B-NVFP4
        ;;
    cluster.7-*)
        mkdir shared scratch
        small "${v4[@]}" --experts 64 --layers 1 -o ckpt
        cp -r ckpt shared
        touch hosts
        export i=3 # of the job
        ;;
    esac
}

# The status that commands of a block are to end with.
promised()
{
    case $1 in
    bench.1-1) grep -q avx512vl /proc/cpuinfo && echo 0 || echo 5 ;;
    diff.1-4 | plan.1-2 | quantize.1-2 | verify.1-3 | verify.1-6) echo 1 ;;
    *) echo 0 ;;
    esac
}

# What is there when the script has ended.
assert_left()
{
    case $1 in
    apply.1-1) run test -f weight_v000007.full/config.json ;;
    completion.1-1) run bash -c ". ./script && complete -p moepack" ;;
    format.5-1) run cp script "$WORK/tensor" ;;
    format.5-5) run jq -e '.physical_to_logical_map | length == 3' init-expert-location.json ;;
    delta.1-1) run test -f pub/weight_v000008/config.json ;;
    delta.1-4) run diff -r weight_v000009.full step-9 ;;
    delta.1-5) run diff -r local/packed-7/rank-003 packed-7/rank-003 ;;
    finish.1-1 | compress.1-1) run "$MOEPACK" verify packed ;;
    plan.1-7) run test -f launched ;;
    repack.1-1) run mv packed "$large" ;;
    synth.1-1) run mv v4 "$large/v4-flash" ;;
    repack.1-4) run test "$(ls main)" = "$(ls draft)" ;;
    repack.1-5) run cmp node-3/packed/placement.json node-0/packed/placement.json ;;
    cluster.7-[345]) run "$MOEPACK" verify shared/packed --source ckpt ;;
    *) return 0 ;;
    esac
    assert_status 0
}

# ---------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------

# take_blocks PAGE: block N as ./N, as a reader sees it.
take_blocks()
{
    awk -v everywhere="$([[ $1 != *.7 ]] || echo 1)" '
        /^\.Sh / { inside = everywhere || $0 == ".Sh EXAMPLES" }
        inside && /^\.Bd / { open = 1; block++; next }
        /^\.Ed/ { open = 0 }
        open { print >block }' "$1"
    find . -type f -exec sed -i 's/\\e/\\/g; s/\\&//g' {} +
}

# What the machine decides of an output: how long it took, and what its threads need.
without_machine()
{
    sed 's/ in [0-9.]* s ([0-9.]* GB\/s)/ in TIME/; s/scratch memory [0-9.]* MB/scratch memory SIZE/'
}

# Runs ./script; the absolute paths of examples are in this directory.
run_script()
{
    [ ! -e "$WORK/tensor" ] || export BASH_ENV=$WORK/tensor # the function of moepack-format(5)
    sed -Ei "s#(^|[[:space:]'])/(ckpt|local|models|scratch|shared)\b#\1$PWD/\2#g" script
    run bash -eu -o pipefail script
}

# Runs what ./script has of a session, and compares with ./shown.
run_step()
{
    [ -s script ] || return 0
    run_script
    cat "$stderr" "$stdout" | without_machine >printed
    without_machine <shown >expected
    if [ "$(tail -n 1 expected)" = ... ]; then
        sed -i '$d' expected
        sed -i "$(($(wc -l <expected) + 1)),\$d" printed
    fi
    assert_file_is printed <expected
    : >script
    : >shown
}

# run_session BLOCK
run_session()
{
    local line more=

    : >script
    : >shown
    while IFS= read -r line; do
        [[ $line != '$ '* ]] || run_step
        if [[ $line == '$ '* || -n $more ]]; then
            printf '%s\n' "${line#\$ }" >>script
            more=
            [[ $line != *\\ ]] && bash -n script 2>/dev/null || more=1
        else
            printf '%s\n' "$line" >>shown
        fi
    done <"$1"
    run_step
}

# Runs what a manifest of Kubernetes has for containers: all indexes of the first, then the second.
run_manifest()
{
    tr '\n' ' ' <"$1" | grep -o 'command: \[[^]]*\]' | sed 's/command: \[//; s/\]//; s/[,"]//g' >commands
    {
        for ((index = 0; index < 16; index++)); do
            echo "JOB_COMPLETIONS=16 JOB_COMPLETION_INDEX=$index $(sed -n 1p commands)"
        done
        sed -n 2p commands
    } >script
    run_script
}

# run_block PAGE-NUMBER BLOCK
run_block()
{
    : >"$log"
    case $1 in
    cluster.7-2)
        cp "$2" pack.sh
        echo 'tasks=3 sbatch --parsable pack.sh' >script
        sed -Ei "s#(^|[[:space:]])/shared\b#\1$PWD/shared#g" pack.sh
        run_script
        ;;
    cluster.7-3)
        sed -E "s#(^|[[:space:]])/shared\b#\1$PWD/shared#g" "$WORK/blocks/2" >pack.sh
        run_script
        ;;
    cluster.7-5) run_manifest "$2" ;;
    *)
        if grep -q '^\$ ' "$2"; then
            run_session "$2"
            return
        fi
        run_script
        ;;
    esac
    assert_status "$(promised "$1")"
}

# Every moepack that the block calls has run, and has ended as it should.
assert_all_ran()
{
    local called

    if grep -q '^\$ ' "$2"; then
        called=$(grep -c '^\$ moepack ' "$2")
    else
        called=$(grep -oE "(^|[^-/_.a-zA-Z0-9])moepack,? [a-z]+" "$2" | wc -l)
    fi
    assert $(($(wc -l <"$log") < called)) "$called calls of moepack, of which these ran: $(cat "$log")"
    assert_equal "$(grep -v "^$(promised "$1") " "$log")" ''
}

blocks=0
first=("$ROOT/man/moepack-synth.1" "$ROOT/man/moepack-repack.1") # others look at what these make
for page in "${first[@]}" "$ROOT"/man/*.[157]; do
    [[ ! -e $WORK/done-${page##*/} ]] || continue
    touch "$WORK/done-${page##*/}"
    rm -rf "$WORK/blocks"
    mkdir "$WORK/blocks"
    (cd "$WORK/blocks" && take_blocks "$page")
    name=${page##*/}
    name=${name#moepack-}
    for n in $(cd "$WORK/blocks" && find . -type f | sed 's|./||' | sort -n); do
        [ "$name" != layouts.7 ] || grep -qE '^(\$|moepack) ' "$WORK/blocks/$n" || continue
        it "runs example $n of ${page##*/}"
        cp "$WORK/blocks/$n" script
        prepare "$name-$n" >/dev/null
        run_block "$name-$n" "$WORK/blocks/$n"
        assert_all_ran "$name-$n" "$WORK/blocks/$n"
        assert_left "$name-$n"
        rm -f "$WORK/bin/python3"
        blocks=$((blocks + 1))
    done
done

it "has run every example of the pages, and every command has one"
assert_equal "$blocks" "$((2 + $(cat "$ROOT"/man/*.[15] | sed -n '/^\.Sh EXAMPLES/,/^\.Sh [^E]/p' |
    cat - "$ROOT/man/moepack-cluster.7" | grep -c '^\.Bd -literal')))"
assert_equal "$(grep -cE '^(\$ |moepack synth)' "$ROOT/man/moepack-layouts.7")" 3
assert_equal "$(grep -L '^\.Sh EXAMPLES' "$ROOT"/man/moepack-*.1)" ''

finish
