# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
#
# Words for the recipe of a case: a small sound checkpoint, changes to it, and files
# written by hand. All is written to the working directory, and data is zeros unless
# `poke` changes it: zero is a good MXFP4 code and a good scale.

config=
index=
plan= # of a snapshot: its checksum.json or 0.json
ready=
names=()
declare -A dtype shape shard
declare -A bits=([I8]=8 [U8]=8 [F8_E4M3]=8 [F8_E8M0]=8 [BF16]=16 [F32]=32 [I32]=32)

# A tensor that is added at the end of its shard; the shape is "128,8".
tensor()
{
    names+=("$1")
    dtype[$1]=$2
    shape[$1]=$3
    shard[$1]=${4:-model.safetensors}
}

# Another type and shape for a tensor that is there.
change()
{
    dtype[$1]=$2
    shape[$1]=$3
}

drop()
{
    local gone kept=() name

    for name in "${names[@]}"; do
        for gone; do
            [ "$name" != "$gone" ] || continue 2
        done
        kept+=("$name")
    done
    names=("${kept[@]}")
}

rename()
{
    tensor "$2" "${dtype[$1]}" "${shape[$1]}" "${shard[$1]}"
    drop "$1"
}

# expert PREFIX ROWS COLUMNS: gate, up and down as DeepSeek V4 stores them.
expert()
{
    local i=$2 h=$3

    tensor "$1.w1.weight" I8 "$i,$((h / 2))"
    tensor "$1.w1.scale" F8_E8M0 "$i,$((h / 32))"
    tensor "$1.w2.weight" I8 "$h,$((i / 2))"
    tensor "$1.w2.scale" F8_E8M0 "$h,$((i / 32))"
    tensor "$1.w3.weight" I8 "$i,$((h / 2))"
    tensor "$1.w3.scale" F8_E8M0 "$i,$((h / 32))"
}

# The sound checkpoint: a V4 with H = 256, I = 128, and one layer of three experts.
checkpoint()
{
    local e

    config='{"model_type": "deepseek_v4", "hidden_size": 256, "moe_intermediate_size": 128,
        "n_routed_experts": 3, "num_experts_per_tok": 2, "num_hidden_layers": 1}'
    for e in 0 1 2; do
        expert "layers.0.ffn.experts.$e" 128 256
    done
    tensor layers.0.ffn.gate.weight BF16 3,256
}

# One as DeepSeek V3 stores it, in FP8 with a float32 scale for a block of 128x128, or as
# Qwen3 does, in BF16; the sizes are the same. Either is config's model_type.
expert_v3()
{
    local name

    for name in gate_proj up_proj down_proj; do
        tensor "$1.$name.weight" F8_E4M3 128,256
        tensor "$1.$name.weight_scale_inv" F32 1,2
    done
    change "$1.down_proj.weight" F8_E4M3 256,128
    change "$1.down_proj.weight_scale_inv" F32 2,1
}

expert_qwen3()
{
    tensor "$1.gate_proj.weight" BF16 128,256
    tensor "$1.up_proj.weight" BF16 128,256
    tensor "$1.down_proj.weight" BF16 256,128
}

# One as ModelOpt brings it to NVFP4.
expert_nvfp4()
{
    local name

    for name in gate_proj up_proj down_proj; do
        tensor "$1.$name.weight" U8 128,128
        tensor "$1.$name.weight_scale" F8_E4M3 128,16
        tensor "$1.$name.weight_scale_2" F32 1
        tensor "$1.$name.input_scale" F32 1
    done
    change "$1.down_proj.weight" U8 256,64
    change "$1.down_proj.weight_scale" F8_E4M3 256,8
}

mlp_checkpoint()
{
    local e

    config='{"model_type": "'$1'", "num_hidden_layers": 1,
        "quantization_config": {"weight_block_size": [128, 128]}}'
    for e in 0 1 2; do
        "$2" "model.layers.0.mlp.experts.$e"
    done
}

# What SGLang has dumped of a layer of two experts, H = 8, I = 4: one rank, which reads two contents
# from one file.
presharded()
{
    local file=model-00000-common.safetensor w13=00000000000000000000000000000000
    local w2=11111111111111111111111111111111 experts=model.layers.0.mlp.experts

    tensor $w13 BF16 2,8,8 $file
    tensor $w2 BF16 2,8,4 $file
    plan='{"version": 1, "world_size": 1, "files": [{"filename": "'$file'", "writer_rank": 0,
        "rank_list": null, "is_common": true, "tensors": [
        {"stored_key": "'$w13'", "size": 256, "rank_to_names": {"0": ["'$experts'.w13_weight"]}},
        {"stored_key": "'$w2'", "size": 128, "rank_to_names": {"0": ["'$experts'.w2_weight"]}}]}],
        "rank_to_reads": {"0": [
        {"filename": "'$file'", "stored_key": "'$w13'", "name": "'$experts'.w13_weight"},
        {"filename": "'$file'", "stored_key": "'$w2'", "name": "'$experts'.w2_weight"}]},
        "rank_checksums": {"0": "e1336045174c21f1"}, "shard_config": {"tp": 1}}'
    ready='{"plan_version": 1, "world_size": 1, "created_at": 1764000000}'
}

# The same as the sharded_state of two ranks, each with half of I, which names the tensors alike.
sharded_state()
{
    local r

    for r in 0 1; do
        state $r "${1:-BF16}"
    done
}

# state RANK TYPE SUFFIX: the file of a rank.
state()
{
    local experts=model.layers.0.mlp.experts

    raw "model-rank-$1-part-0.safetensors" \
        '{"'$experts'.w13_weight'"${3-}"'":{"dtype":"'"$2"'","shape":[2,4,8],"data_offsets":[0,128]},"'$experts'.w2_weight":{"dtype":"BF16","shape":[2,8,2],"data_offsets":[128,192]}}' 192
}

# The same as vllm-ascend's BigTensorLoader has it; 0.snapshot is zeros.
big_tensor()
{
    plan='{"schema_version": 2, "world_rank": 0, "world_size": 1, "fingerprint": {}, "sha256": "",
        "tensors": {
        "model.layers.0.mlp.experts.w13_weight": {"dtype": "bfloat16", "shape": [2, 8, 8],
        "format": 29, "offset": 0, "nbytes": 256},
        "model.layers.0.mlp.experts.w2_weight": {"dtype": "bfloat16", "shape": [2, 8, 4],
        "format": 2, "offset": 256, "nbytes": 128}}}'
    truncate -s 384 0.snapshot
}

# Changes what the snapshot says of itself, config.json, or the index that comes with shards, by a
# jq filter.
edit_plan()
{
    plan=$(jq -c "$1" <<<"$plan")
}

edit_config()
{
    config=$(jq -c "$1" <<<"$config")
}

edit_index()
{
    index=$(jq -c "$1" <<<"$index")
}

# An index of what there is now.
make_index()
{
    local name

    index=$(for name in "${names[@]}"; do
        printf '{"%s": "%s"}\n' "$name" "${shard[$name]}"
    done | jq -cs '{metadata: {}, weight_map: add}')
}

# The 8 bytes in front of a header.
print_length()
{
    local byte i text=

    for i in 0 8 16 24 32 40 48 56; do
        printf -v byte '\\x%02x' $(($1 >> i & 255))
        text+=$byte
    done
    printf '%b' "$text"
}

# raw FILE HEADER BYTES: a shard of that header and so many bytes of zeros.
raw()
{
    local LC_ALL=C

    {
        print_length ${#2}
        printf '%s' "$2"
    } >"$1"
    truncate -s +"$3" "$1"
}

# Sets $header and $bytes of a shard; remembers in $offset where tensors begin.
declare -A offset
lay_out()
{
    local name size

    header='{"__metadata__":{"format":"pt"}'
    bytes=0
    for name in "${names[@]}"; do
        [ "${shard[$name]}" = "$1" ] || continue
        size=$((${shape[$name]//,/*} * ${bits[${dtype[$name]}]} / 8))
        header+=",\"$name\":{\"dtype\":\"${dtype[$name]}\",\"shape\":[${shape[$name]}]"
        header+=",\"data_offsets\":[$bytes,$((bytes + size))]}"
        offset[$name]=$bytes
        bytes=$((bytes + size))
    done
    header+='}'
}

write()
{
    local file

    for file in $(printf '%s\n' "${shard[@]}" | sort -u); do
        lay_out "$file"
        raw "$file" "$header" "$bytes"
    done
    [ -z "$config" ] || printf '%s\n' "$config" >config.json
    if [ -f 0.snapshot ]; then
        printf '%s\n' "$plan" >0.json
    elif [ -n "$plan" ]; then
        printf '%s\n' "$plan" >checksum.json
        printf '%s\n' "$ready" >READY
    fi
    [ -z "$index" ] || printf '%s\n' "$index" >model.safetensors.index.json
}

# poke TENSOR AT BYTES: puts bytes, written \xff, into a tensor of the only shard.
poke()
{
    lay_out model.safetensors
    printf '%b' "$3" |
        dd of=model.safetensors bs=1 seek=$((8 + ${#header} + ${offset[$1]} + $2)) \
            conv=notrunc status=none
}

# u32 NUMBER [BYTES]: its low bytes, 4 of them, in little-endian order.
u32()
{
    print_length "$1" | head -c "${2:-4}"
}

# frame BYTES: a zstd frame of so many bytes of standard input, 128 KiB at most, as they are. It
# takes 12 bytes more.
frame()
{
    printf '\x28\xb5\x2f\xfd\xa0'
    u32 "$1"
    u32 $(($1 << 3 | 1)) 3
    head -c "$1"
}

# seek_table STORED:CONTENT...: of frames that take and give so many bytes.
seek_table()
{
    local entry

    printf '\x5e\x2a\x4d\x18'
    u32 $((8 * $# + 9))
    for entry; do
        u32 "${entry%:*}"
        u32 "${entry#*:}"
    done
    u32 $#
    printf '\0\xb1\xea\x92\x8f'
}

# compress: the only shard, in three frames: its header, 100000 bytes, and the rest. Without a table.
compress()
{
    lay_out model.safetensors
    head=$((8 + ${#header}))
    rest=$((bytes - 100000))
    {
        frame $head
        frame 100000
        frame $rest
    } <model.safetensors >model.safetensors.zst
    rm model.safetensors
}
