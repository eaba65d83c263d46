# SPDX-License-Identifier: Apache-2.0
"""moepack.json and placement.json as values, held against each other.

Of the manifest, what a loader has to know; members that it does not know are passed over, as
moepack-format(5) asks of readers.
"""

import os
import re
from collections import namedtuple

from . import jsontext, layouts, xxh3
from .errors import PackError
from .files import read_text

FORMAT_VERSION = "1"
NAME = "moepack.json"
PLACEMENT = "placement.json"
SEAL = re.compile(rb',\n  "xxh3": "([0-9a-f]{32})"\n}\n\Z')
DIGEST = re.compile(r"[0-9a-f]{32}\Z")

# More than any model has.
SIZE_MOST = 1 << 20
RANKS_MOST = 65536

PackedFile = namedtuple("PackedFile", "name size tensors")  # tensors: [(name, xxh3)]
PackedRank = namedtuple("PackedRank", "index_xxh3 files")


def check_seal(text):
    """The digest at the end of the manifest is that of everything else."""
    seal = SEAL.search(text)
    if seal is None:
        raise PackError(f"{NAME}: does not end in its digest")
    said = seal.group(1).decode()
    actual = xxh3.digest(text[: seal.start()] + b"\n}\n")
    if actual != said:
        raise PackError(f"{NAME}: changed: its digest is {actual}, it says {said}")


def _digest(value, key):
    text = jsontext.member(value, key, str, NAME)
    if not DIGEST.match(text):
        raise PackError(f'{NAME}: "{key}" is not an XXH3-128 in hex')
    return text


def _file(value):
    name = jsontext.member(value, "name", str, NAME)
    size = jsontext.member(value, "size", int, NAME)
    if not name or "/" in name or "\0" in name or name.startswith("."):
        raise PackError(f'{NAME}: "{name}" is not a file name')
    tensors = [
        (jsontext.member(t, "name", str, NAME), _digest(t, "xxh3"))
        for t in jsontext.member(value, "tensors", list, NAME)
    ]
    return PackedFile(name, size, tensors)


def _ranks(root, ep_size):
    ranks = {}
    last = -1
    for value in jsontext.member(root, "ranks", list, NAME):
        number = jsontext.member(value, "rank", int, NAME)
        index_xxh3 = _digest(value, "index_xxh3")
        files = jsontext.member(value, "files", list, NAME)
        if number >= ep_size:
            raise PackError(f"{NAME}: rank {number}, but ep_size is {ep_size}")
        ranks[number] = PackedRank(index_xxh3, [_file(f) for f in files])
        if number <= last:
            raise PackError(f"{NAME}: rank {number} after rank {last}")
        last = number
    return ranks


class Manifest:
    """What moepack.json says. Its numbers are bounded, so that sizes made of them are too."""

    def __init__(self, text):
        check_seal(text)
        root = jsontext.parse(text, NAME)
        version = jsontext.member(root, "format_version", str, NAME)
        if version != FORMAT_VERSION:
            raise PackError(
                f'{NAME}: format version "{version}", this tool reads "{FORMAT_VERSION}"'
            )
        self.target = jsontext.member(root, "target", str, NAME)
        self.target_version = jsontext.member(root, "target_version", int, NAME)
        self.nz = jsontext.flag(root, "nz", NAME)
        self.alphas = jsontext.member(root, "alphas", str, NAME) if "alphas" in root else "sgl"
        quantization = jsontext.member(root, "quantization", dict, NAME)
        self.scheme = jsontext.member(quantization, "target", str, NAME)
        model = jsontext.member(root, "model", dict, NAME)
        self.family = jsontext.member(model, "family", str, NAME)
        self.hidden_size = jsontext.member(model, "hidden_size", int, NAME)
        self.moe_intermediate_size = jsontext.member(model, "moe_intermediate_size", int, NAME)
        self.num_experts = jsontext.member(model, "num_experts", int, NAME)
        self.num_shared_experts = jsontext.member(model, "num_shared_experts", int, NAME)
        self.model_layers = jsontext.member(model, "layers", int, NAME)
        self.ep_size = jsontext.member(root, "ep_size", int, NAME)
        self.num_physical = jsontext.member(root, "num_physical", int, NAME)
        self.shared = jsontext.member(root, "shared", str, NAME)
        if self.shared not in ("none", "fused", "separate"):
            raise PackError(f'{NAME}: this version does not know shared mode "{self.shared}"')
        self.placement_xxh3 = _digest(root, "placement_xxh3")
        self.config_xxh3 = None
        if root.get("config_xxh3") is not None:
            self.config_xxh3 = _digest(root, "config_xxh3")
        self.layers = jsontext.member(root, "layers", list, NAME)
        for i, layer in enumerate(self.layers):
            if type(layer) is not str:
                raise PackError(f'{NAME}: "layers": entry {i} is not a string')
        self.ranks = _ranks(root, self.ep_size)
        if self.ep_size == 0 or self.num_physical % self.ep_size != 0:
            raise PackError(
                f"{NAME}: {self.num_physical} physical experts on {self.ep_size} ranks"
            )

    def check(self, target):
        """What the manifest says of sizes, held against itself and the target."""
        h, i = self.hidden_size, self.moe_intermediate_size
        if h > SIZE_MOST or i > SIZE_MOST:
            raise PackError(f"sizes {h} and {i} are over {SIZE_MOST}")
        if self.num_experts > SIZE_MOST or self.num_physical > SIZE_MOST:
            raise PackError(
                f"{self.num_experts} experts, {self.num_physical} physical, are over {SIZE_MOST}"
            )
        if self.ep_size > RANKS_MOST:
            raise PackError(f"ep_size {self.ep_size} is over {RANKS_MOST}")
        if self.shared != "none" and self.num_shared_experts == 0:
            raise PackError(f"shared experts are {self.shared}, but the model has none")
        if self.shared != "none" and self.num_shared_experts > SIZE_MOST // (i + 1):
            raise PackError(
                f"{self.num_shared_experts} shared experts of size {i} are wider than {SIZE_MOST}"
            )
        if self.num_experts == 0:
            raise PackError("slots: no logical experts")
        if self.num_physical < self.num_experts:
            raise PackError(
                f"slots: {self.num_physical} physical experts for {self.num_experts} logical ones"
            )
        sets = self._sets(target)
        if not 0 < len(self.layers) <= self.model_layers:
            count, all_layers = len(self.layers), self.model_layers
            raise PackError(
                f"{count} layer{'' if count == 1 else 's'}, the model has {all_layers} MoE "
                f"layer{'' if all_layers == 1 else 's'}"
            )
        if not self.ranks:
            raise PackError("no rank")
        if self.scheme != target.scheme:
            raise PackError(
                f"quantized to {self.scheme}, but {self.target} takes {target.scheme}"
            )
        if len(set(self.layers)) != len(self.layers):
            twice = next(name for name in sorted(self.layers) if self.layers.count(name) > 1)
            raise PackError(f"layer {twice} is listed twice")
        return sets

    def _sets(self, target):
        """The slot sets of a layer on a rank."""
        h, i = self.hidden_size, self.moe_intermediate_size
        shared = self.num_shared_experts
        slots = self.num_physical // self.ep_size + (shared if self.shared == "fused" else 0)
        sets = [layouts.SlotSet(target, "experts", h, i, slots)]
        if self.shared == "separate":
            apart = target.separate or target
            wide = shared if apart.single else 1  # all of them as one expert that is as wide
            sets.append(
                layouts.SlotSet(apart, "shared_experts", h, wide * i, 1 if apart.single else shared)
            )
        return sets


def load(directory):
    """The manifest of a packed directory, and its slot sets."""
    path = os.path.join(directory, NAME)
    if not os.path.lexists(path):
        if not os.path.isdir(directory):
            raise PackError(f'"{directory}" is not a directory')
        raise PackError(f'"{directory}" is not a pack: it has no {NAME}')
    manifest = Manifest(read_text(path, NAME))
    target = layouts.find(manifest.target, manifest.target_version, manifest.nz, manifest.alphas)
    try:
        return manifest, manifest.check(target)
    except PackError as error:
        raise PackError(f"{NAME}: {error}") from None


def load_text(directory, name, said):
    """The bytes of a text that the manifest has the digest of."""
    text = read_text(os.path.join(directory, name), name)
    actual = xxh3.digest(text)
    if actual != said:
        raise PackError(f"{name}: changed: its xxh3 is {actual}, the manifest says {said}")
    return text


def _placement_rows(root):
    if type(root) is not dict or "physical_to_logical_map" not in root:
        raise PackError("neither physical_to_logical_map nor layer_list is there")
    for key in root:
        if key != "physical_to_logical_map":
            raise PackError(f'unknown key "{key}"')
    rows = root["physical_to_logical_map"]
    if type(rows) is not list:
        raise PackError('"physical_to_logical_map" is no list')
    if rows and type(rows[0]) is int:
        rows = [rows]  # one for all layers
    for r, row in enumerate(rows):
        if type(row) is not list:
            raise PackError(f"row {r} is not a list")
        if not row:
            raise PackError(f"row {r} is empty")
        for c, expert in enumerate(row):
            if type(expert) is not int:
                raise PackError(f"row {r}, column {c}: not an integer")
        if len(row) != len(rows[0]):
            raise PackError(f"row {r} has {len(row)} columns, row 0 has {len(rows[0])}")
    if not rows:
        raise PackError("no layers")
    return rows


def load_placement(directory, manifest):
    """The experts of physical ones, a row for each layer of the pack."""
    text = load_text(directory, PLACEMENT, manifest.placement_xxh3)
    root = jsontext.parse(text, f"{PLACEMENT}: placement")
    try:
        rows = _placement_rows(root)
        for r, row in enumerate(rows):
            for c, expert in enumerate(row):
                if not 0 <= expert < manifest.num_experts:
                    raise PackError(
                        f"row {r}, column {c}: logical expert {expert}, expected 0 to "
                        f"{manifest.num_experts - 1}"
                    )
            absent = set(range(manifest.num_experts)) - set(row)
            if absent:
                raise PackError(
                    f"row {r}: logical expert {min(absent)} is in none of the {len(row)} columns"
                )
    except PackError as error:
        raise PackError(f"{PLACEMENT}: placement: {error}") from None
    if len(rows[0]) != manifest.num_physical:
        raise PackError(
            f"{PLACEMENT}: {len(rows[0])} physical experts, the manifest says "
            f"{manifest.num_physical}"
        )
    if len(rows) not in (1, len(manifest.layers)):
        raise PackError(f"{PLACEMENT}: {len(rows)} rows for {len(manifest.layers)} layers")
    return rows if len(rows) > 1 else rows * len(manifest.layers)
