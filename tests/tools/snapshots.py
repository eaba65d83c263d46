#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the dumps of engines out of a checkpoint, by the description of their formats.

    snapshots.py KIND CKPT OUT [--ep N] [--tp N] [--pp N] [--order plain|swapped|8|16]
                 [--redundant N] [--placement FILE] [--transposed] [--megamoe] [--sha1]

KIND is presharded, sharded_state or bigtensor. Experts are stacked to w13_weight [E, 2I, H] and
w2_weight [E, H, I], with their scales; other tensors stay as they are, and are the same on all
ranks. --ep splits experts, --tp splits I, --pp splits layers; ranks are all of these multiplied.
--transposed stacks to [E, H, 2I] and [E, I, H], with scales [E, 2I] and [E, H], as Ascend has them.
--placement is a JSON list of the logical expert of each physical one.

Only what Python brings along, and xxh128sum.
"""

import argparse
import hashlib
import json
import pathlib
import re
import subprocess

from tensors import read, write

TORCH = {
    "BF16": "torch.bfloat16",
    "F16": "torch.float16",
    "F32": "torch.float32",
    "I8": "torch.int8",
    "U8": "torch.uint8",
    "I32": "torch.int32",
    "F8_E4M3": "torch.float8_e4m3fn",
    "F8_E8M0": "torch.float8_e8m0fnu",
}
SUFFIX = {
    "weight": "weight",
    "weight_packed": "weight_packed",
    "weight_scale_inv": "weight_scale_inv",
    "weight_scale": "weight_scale",
    "scale": "weight_scale_inv",
    "weight_scale_2": "weight_scale_2",
    "weight_global_scale": "weight_global_scale",
}
SCALARS = ("weight_scale_2", "weight_global_scale")
HALVES = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down", "w1": "gate", "w3": "up", "w2": "down"}
EXPERT = re.compile(r"^(?:model\.)?(layers\.\d+)\.(?:mlp|ffn)\.experts\.(\d+)\.(\w+)\.(\w+)$")


def rows_of(entry):
    """The rows of a tensor of two dimensions, as bytes."""
    _, shape, data = entry
    width = len(data) // shape[0]
    return [bytes(data[i * width : (i + 1) * width]) for i in range(shape[0])]


def ordered(gate, up, order):
    """Rows of w13."""
    if order == "plain":
        return gate + up
    if order == "swapped":
        return up + gate
    out = []
    step = 1 if order == "8" else 2
    for begin in range(0, len(gate), 8 * step):
        for first in range(step):
            rows = range(begin + first, begin + 8 * step, step)
            out += [gate[r] for r in rows] + [up[r] for r in rows]
    return out


def part_rows(rows, rank, count):
    size = len(rows) // count
    return rows[rank * size : (rank + 1) * size]


def part_cols(rows, rank, count):
    size = len(rows[0]) // count
    return [row[rank * size : (rank + 1) * size] for row in rows]


def turned_over(rows, width):
    """Columns of rows, in elements of so many bytes."""
    return [b"".join(row[k : k + width] for row in rows) for k in range(0, len(rows[0]), width)]


def load(ckpt):
    """Experts as {(layer, role): {expert: {half: entry}}}, and the other tensors."""
    experts, others = {}, {}
    for path in sorted(pathlib.Path(ckpt).glob("*.safetensors")):
        for name, entry in read(path)[0].items():
            found = EXPERT.match(name)
            if not found:
                others[name] = entry
                continue
            layer, expert, half, role = found.groups()
            if role not in SUFFIX:
                continue
            halves = experts.setdefault((layer, SUFFIX[role]), {}).setdefault(int(expert), {})
            halves[HALVES[half]] = entry
    return experts, others


def state_dict(experts, others, options, rank):
    """What the rank has: {name: [dtype, shape, bytes]}."""
    tp_rank, ep_rank = rank % options.tp, rank // options.tp % options.ep
    stage = rank // (options.tp * options.ep)
    numbers = sorted({int(layer.split(".")[1]) for layer, _ in experts})
    here = part_rows(numbers, stage, options.pp)
    out = dict(others)
    for (layer, role), members in experts.items():
        if (options.megamoe and "scale" in role) or int(layer.split(".")[1]) not in here:
            continue
        physical = options.placement or [p % len(members) for p in range(len(members) + options.redundant)]
        size = len(physical) // options.ep
        ids = physical[ep_rank * size : (ep_rank + 1) * size]
        name = f"model.{layer}.mlp.experts.{{}}_{role}"
        if role in SCALARS:
            pairs = [bytes(members[e]["gate"][2]) + bytes(members[e]["up"][2]) for e in ids]
            out[name.format("w13")] = ["F32", [size, 2], b"".join(pairs)]
            out[name.format("w2")] = ["F32", [size], b"".join(bytes(members[e]["down"][2]) for e in ids)]
            continue
        w13, w2 = [], []
        for e in ids:
            half = members[e]
            gate, up = (part_rows(rows_of(half[h]), tp_rank, options.tp) for h in ("gate", "up"))
            w13.append(ordered(gate, up, options.order))
            down = rows_of(half["down"])
            w2.append(down if half["down"][1][1] == 1 else part_cols(down, tp_rank, options.tp))
        for which, stack, like in (("w13", w13, half["gate"]), ("w2", w2, half["down"])):
            cols = len(stack[0][0]) * like[1][1] // len(rows_of(like)[0])
            shape = [size, len(stack[0]), cols]
            if options.transposed:
                stack = [turned_over(rows, len(rows[0]) // cols) for rows in stack]
                shape = [size, shape[1]] if cols == 1 else [size, cols, shape[1]]
            data = b"".join(row for rows in stack for row in rows)
            out[name.format(which)] = [like[0], shape, data]
    return out


def content_hash(data, sha1):
    if sha1:
        return hashlib.sha1(data).hexdigest()
    run = subprocess.run(["xxh128sum"], input=data, capture_output=True, check=True)
    return run.stdout.split()[0].decode()


def key_of(entry, sha1):
    dtype, shape, data = entry
    return content_hash((str(tuple(shape)) + TORCH[dtype]).encode() + data, sha1)


def location_of(options):
    if not options.placement_file:
        return "trivial"
    path = pathlib.Path(options.placement_file)
    return f"file:{path.name}:sha1:{hashlib.sha1(path.read_bytes()).hexdigest()[:16]}"


def write_presharded(states, out, options):
    world = len(states)
    config = {"tp": options.tp * options.ep, "ep": options.ep, "pp": options.pp, "quantization": None}
    config |= {"moe_runner_backend": "auto", "mem": 0.875, "name": "Modèle"}
    config |= {"ep_num_redundant_experts": options.redundant, "init_expert_location": location_of(options)}
    if options.megamoe:
        config["moe_a2a_backend"] = "megamoe"
    sig = hashlib.sha1(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    out = pathlib.Path(out) / f"TP-{world}-sig-{sig}"
    out.mkdir(parents=True)
    contents = {}  # key: entry, readers {rank: [name]}
    for rank, state in enumerate(states):
        for name, entry in state.items():
            _, readers = contents.setdefault(key_of(entry, options.sha1), (entry, {}))
            readers.setdefault(rank, []).append(name)
    groups = {}
    for key, (entry, readers) in contents.items():
        groups.setdefault(tuple(sorted(readers)), []).append(key)
    files, reads = [], {str(r): [] for r in range(world)}
    for number, (ranks, keys) in enumerate(groups.items()):
        common = len(ranks) == world
        name = f"model-{number:05d}-" + ("common" if common else "rank-" + ",".join(f"{r:03d}" for r in ranks)) + ".safetensor"
        write(out / name, {key: contents[key][0] for key in keys})
        tensors = []
        for key in keys:
            entry, readers = contents[key]
            names = {str(r): sorted(n) for r, n in readers.items()}
            tensors.append({"stored_key": key, "size": len(entry[2]), "rank_to_names": names})
            for rank, of_rank in names.items():
                reads[rank] += [{"filename": name, "stored_key": key, "name": n, "is_extra": False} for n in of_rank]
        files.append({"filename": name, "writer_rank": ranks[0], "rank_list": None if common else list(ranks), "is_common": common, "tensors": tensors})
    plan = {"version": 1, "world_size": world, "files": files, "rank_to_reads": reads, "rank_checksums": checksums(reads, options.sha1), "shard_config": config}
    (out / "checksum.json").write_text(json.dumps(plan, indent=2))
    (out / "READY").write_text(json.dumps({"plan_version": 1, "world_size": world, "created_at": 1764000000.25}))
    print(out)


def checksums(reads, sha1):
    sums = {}
    for rank, entries in reads.items():
        total = sum(int(content_hash(f"{e['name']}:{e['stored_key']}".encode(), sha1)[:16], 16) for e in entries)
        sums[rank] = f"{total % 2**64:016x}"
    return sums


def write_sharded_state(states, out, _):
    out = pathlib.Path(out)
    out.mkdir(parents=True)
    for rank, state in enumerate(states):
        names = list(state)
        middle = (len(names) + 1) // 2
        for part, some in enumerate((names[:middle], names[middle:])):
            write(out / f"model-rank-{rank}-part-{part}.safetensors", {n: state[n] for n in some})
    print(out)


def write_bigtensor(states, out, _):
    out = pathlib.Path(out)
    out.mkdir(parents=True)
    for rank, state in enumerate(states):
        blob, tensors = bytearray(), {}
        for name, (dtype, shape, data) in state.items():
            blob += b"\0" * (-len(blob) % 16)
            torch = TORCH[dtype].split(".")[1]
            tensors[name] = {"dtype": torch, "shape": shape, "format": 29 if ".experts." in name else 2, "offset": len(blob), "nbytes": len(data), "kind": "param", "save_dtype": torch, "save_shape": shape}
            blob += data
        manifest = {"schema_version": 2, "world_rank": rank, "world_size": len(states), "fingerprint": {"model": "m"}, "sha256": hashlib.sha256(blob).hexdigest(), "tensors": tensors}
        (out / f"{rank}.snapshot").write_bytes(blob)
        (out / f"{rank}.json").write_text(json.dumps(manifest))
    print(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["presharded", "sharded_state", "bigtensor"])
    parser.add_argument("ckpt")
    parser.add_argument("out")
    parser.add_argument("--ep", type=int, default=1)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--redundant", type=int, default=0)
    parser.add_argument("--placement", dest="placement_file")
    parser.add_argument("--transposed", action="store_true")
    parser.add_argument("--order", default="plain", choices=["plain", "swapped", "8", "16"])
    parser.add_argument("--megamoe", action="store_true")
    parser.add_argument("--sha1", action="store_true")
    options = parser.parse_args()
    options.placement = None
    if options.placement_file:
        options.placement = json.loads(pathlib.Path(options.placement_file).read_text())
    experts, others = load(options.ckpt)
    if options.placement:
        options.redundant = len(options.placement) - len(next(iter(experts.values())))
    world = options.ep * options.tp * options.pp
    states = [state_dict(experts, others, options, rank) for rank in range(world)]
    globals()["write_" + options.kind](states, options.out, options)


if __name__ == "__main__":
    main()
