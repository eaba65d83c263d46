# SPDX-License-Identifier: Apache-2.0
"""A packed directory and the tensors of a rank of it, by Python's standard library alone.

    pack = moepack.Pack("packed")
    pack.expect(target="megamoe-w4a8", ep_size=8)
    rank = pack.rank(3)
    for layer in rank.layers:
        weight = rank[layer]["l1_weight"]  # .dtype .shape .strides .data: no copy

Opening holds all parts of a pack against each other and trusts no size: the seal and numbers of
moepack.json, placement.json, and of the rank that is opened its index, headers and files. Bytes of
tensors are looked at where verify="digest" is given. What does not fit is a PackError.

Nothing here needs closing: a file stays mapped as long as a tensor of it lives.
"""

import array
import io
import json
import mmap
import os
import re
from collections import namedtuple
from collections.abc import Mapping

from . import manifest as manifests, safetensors, xxh3
from .errors import PackError
from .files import open_regular

# mmap has the name since Python 3.11; the number is that of Linux on x86-64 and aarch64.
MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)

UTCCP_ROWS = 128  # rows of scales that UTCCP order moves among themselves


def _contiguous(shape):
    strides, step = [], 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= extent
    return tuple(strides)


class Tensor(namedtuple("Tensor", "dtype shape strides data")):
    """A tensor as it is stored.

    dtype: as safetensors names it, "I8" or "F8_E4M3", say. strides: in elements.
    data: a read-only memoryview of its bytes.
    """

    __slots__ = ()

    def __repr__(self):
        return f"Tensor({self.dtype}, {list(self.shape)}, strides {list(self.strides)})"

    def as_engine(self):
        """Scales of MegaMoE, stored [..., words, MN], as engines see them: [..., MN, words] with
        MN contiguous. The bytes are the same."""
        *outer, words, mn = self.shape
        *steps, word_step, mn_step = self.strides
        return self._replace(shape=(*outer, mn, words), strides=(*steps, mn_step, word_step))


class Layer(Mapping):
    """Tensors of a layer on a rank, by the names of moepack-layouts(7). Those of shared experts
    that stay apart have "shared_experts." before them."""

    def __init__(self, rank, prefix):
        self._rank = rank
        self._prefix = prefix
        self._names = {
            key: f"{prefix}.{block}.{tensor.name}"
            for key, (block, tensor) in rank._described.items()
            if f"{prefix}.{block}.{tensor.name}" in rank._places
        }

    def __getitem__(self, name):
        if name not in self._names:
            raise KeyError(f"{self._prefix} has no {name}, only {', '.join(self._names)}")
        return self._rank._tensor(self._names[name])

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


def _decompressed(file):
    """A stream of what a file compressed by zstd holds."""
    try:
        import zstandard
    except ImportError:
        raise PackError(
            "compressed, and the zstandard module is not here: pip install zstandard"
        ) from None
    return io.BufferedReader(
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
    )


class Rank:
    """The files of one rank, mapped. Made by Pack.rank."""

    def __init__(self, pack, number):
        self.pack = pack
        self.number = number
        self.layers = tuple(pack.layers)
        self.directory = os.path.join(pack.directory, f"rank-{number:03d}")
        self._described = {
            tensor.name if block == "experts" else f"{block}.{tensor.name}": (block, tensor)
            for block, tensor in ((s.block, t) for s in pack._sets for t in s.tensors)
        }
        self._places = {}  # tensor: (its entry, the bytes of its file's data)
        self._checked = set()
        try:
            self._open()
        except PackError as error:
            raise PackError(f"rank-{number:03d}: {error}") from None

    def _open(self):
        if not os.path.isdir(self.directory):
            raise PackError("the directory is missing")
        listed = self.pack._manifest.ranks[self.number]
        weight_map, index_text = safetensors.read_index(self.directory)
        files = {}
        for name in sorted(set(weight_map.values())):
            try:
                files[name] = self._open_file(name)
            except PackError as error:
                raise PackError(f"{name}: {error}") from None
        safetensors.check_index(weight_map, {n: entries for n, (entries, _, _) in files.items()})
        for entries, data, _ in files.values():
            for entry in entries:
                self._places[entry.name] = entry, data
        self._check_tensors()
        self._check_listed(listed, files, index_text)
        self._digests = {name: xxh3 for file in listed.files for name, xxh3 in file.tensors}

    def _open_file(self, name):
        """Entries, a view of the data, and the size of a shard."""
        path = os.path.join(self.directory, name)
        file = open_regular(path, f'the file is missing, "{safetensors.INDEX}" names it')
        with file:
            size = os.fstat(file.fileno()).st_size
            if name.endswith(".zst"):
                return (*self._inflate(file), size)
            if size < 8:
                raise PackError(f"file of {size} bytes is too small for a header")
            # Private and writable, as torch.frombuffer wants it; nothing is ever written.
            mapped = mmap.mmap(
                file.fileno(),
                size,
                flags=mmap.MAP_PRIVATE | MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        view = memoryview(mapped)
        begin = 8 + safetensors.header_length(view[:8], size)
        return safetensors.parse_header(view[8:begin], size - begin), view[begin:], size

    def _inflate(self, file):
        """Entries and data of a compressed shard, whole in memory."""
        # Its size is its own claim, so no more is taken than all tensors of the rank can be.
        most = len(self.layers) * sum(s.bytes() for s in self.pack._sets)
        data = bytearray()
        try:
            stream = _decompressed(file)
            text = stream.read(safetensors.header_length(stream.read(8), None))
            while len(data) <= most and (piece := stream.read(1 << 24)):
                data += piece
        except Exception as error:
            if type(error).__module__.partition(".")[0] != "zstandard":
                raise
            raise PackError(f"not what zstd compresses: {error}") from None
        if len(data) > most:
            raise PackError(f"holds more than the {most} bytes of all tensors of a rank")
        return safetensors.parse_header(text, len(data)), memoryview(data)

    def _check_tensors(self):
        """That every tensor of every layer is there, of the type and shape that the target has."""
        for layer in self.layers:
            for slots in self.pack._sets:
                for wanted in slots.tensors:
                    name = f"{layer}.{slots.block}.{wanted.name}"
                    if name not in self._places:
                        if wanted.optional:
                            continue
                        raise PackError(f"{name}: missing")
                    entry, _ = self._places[name]
                    shape = slots.shape(wanted)
                    if entry.dtype != wanted.dtype or entry.shape != shape:
                        text = safetensors.shape_text
                        raise PackError(
                            f"{name}: {entry.dtype} {text(entry.shape)}, "
                            f"expected {wanted.dtype} {text(shape)}"
                        )

    def _check_listed(self, listed, files, index_text):
        """That the files are those of the manifest."""
        actual = xxh3.digest(index_text)
        if actual != listed.index_xxh3:
            raise PackError(
                f"{safetensors.INDEX}: changed: its xxh3 is {actual}, "
                f"the manifest says {listed.index_xxh3}"
            )
        for name in files:
            if name not in {file.name for file in listed.files}:
                raise PackError(f"{name}: the manifest does not name it")
        for file in listed.files:
            if file.name not in files:
                raise PackError(f"{file.name}: the index does not name it, the manifest does")
            entries, _, size = files[file.name]
            if size != file.size:
                word = "truncated" if size < file.size else "too long"
                raise PackError(
                    f"{file.name}: {word}: {size} bytes, the manifest says {file.size}"
                )
            if len(entries) != len(file.tensors):
                raise PackError(
                    f"{file.name}: {len(entries)} tensors, the manifest lists {len(file.tensors)}"
                )
            for i, (entry, (name, _)) in enumerate(zip(entries, file.tensors)):
                if entry.name != name:
                    raise PackError(
                        f"{file.name}: tensor {i} is {entry.name}, the manifest lists {name}"
                    )

    def _bytes(self, name):
        """A view of a tensor's bytes, digested where that was asked for."""
        entry, data = self._places[name]
        view = data[entry.begin : entry.end]
        if self.pack.verify == "digest" and name not in self._checked:
            actual = xxh3.digest(view)
            if actual != self._digests[name]:
                raise PackError(
                    f"rank {self.number}, {name}: changed: its xxh3 is {actual}, "
                    f"the manifest says {self._digests[name]}"
                )
            self._checked.add(name)
        return view

    def _tensor(self, name):
        entry, _ = self._places[name]
        return Tensor(
            entry.dtype, entry.shape, _contiguous(entry.shape), self._bytes(name).toreadonly()
        )

    def __getitem__(self, layer):
        return Layer(self, self.pack.layers[self.pack.layer(layer)])

    def interleaved(self, layer):
        """The scales of a layer without UTCCP order, by name: rows q*32+c of each 128 are those at
        4*c+q. It is what SGLang's ordinary path reads beside the other one. Copies."""
        tensors = self[layer]
        names = [name for name in tensors if self._described[name][1].scales]
        if not names:
            raise PackError(f"{self.pack.target} has no scales in UTCCP order")
        return {name: _undo_utccp(tensors[name]) for name in names}

    def torch(self, layer, device=None):
        """The tensors of a layer as torch's, by name, scales of MegaMoE as engines see them.

        device: None leaves them where they are, on the mapped file, so that they must not be
        written to; else they are copied there.
        """
        from . import tensors

        prefix = self.pack.layers[self.pack.layer(layer)]
        made = {}
        for key, name in Layer(self, prefix)._names.items():
            entry, _ = self._places[name]
            stored = tensors.from_buffer(self._bytes(name), entry.dtype, entry.shape, device)
            scales = self._described[key][1].scales
            made[key] = stored.transpose(-1, -2) if scales else stored
        return made


def _undo_utccp(tensor):
    words = array.array("i")
    words.frombytes(tensor.data)
    plain = array.array("i", bytes(len(words) * words.itemsize))
    for run in range(0, len(words), UTCCP_ROWS):  # MN is a multiple of it, and contiguous
        for q in range(4):
            plain[run + 32 * q : run + 32 * (q + 1)] = words[run + q : run + UTCCP_ROWS : 4]
    return tensor._replace(data=memoryview(plain).cast("B").toreadonly())


class Pack:
    """A packed directory. No rank's directory is touched before rank() asks for it.

    verify: "digest" digests each tensor before it is first handed out, at memory speed, and
    needs the xxhash module or libxxhash for it.
    """

    def __init__(self, path, verify=None):
        if verify not in (None, "digest"):
            raise PackError(f'verify is {verify!r}, expected None or "digest"')
        if verify and not xxh3.fast():
            raise PackError(
                'verify="digest" needs the xxhash module or libxxhash.so.0: '
                "pip install xxhash, or check the pack with moepack verify"
            )
        self.directory = os.fspath(path)
        self.verify = verify
        self._manifest, self._sets = manifests.load(self.directory)
        self._rows = manifests.load_placement(self.directory, self._manifest)
        m = self._manifest
        self.target, self.nz, self.alphas = m.target, m.nz, m.alphas
        self.family = m.family
        self.ep_size, self.num_physical = m.ep_size, m.num_physical
        self.num_experts, self.num_shared_experts = m.num_experts, m.num_shared_experts
        self.hidden_size, self.moe_intermediate_size = m.hidden_size, m.moe_intermediate_size
        self.shared = m.shared
        self.layers = tuple(m.layers)  # prefixes, in order
        self.ranks = tuple(m.ranks)  # numbers of those in the pack

    def expect(self, **wanted):
        """Refuses a pack that differs from what is given, naming both values. Any of target, nz, alphas,
        family, ep_size, num_physical, num_experts, num_shared_experts, hidden_size,
        moe_intermediate_size, shared, layers (prefixes) and ranks. Returns the pack."""
        for key, value in wanted.items():
            if key not in _EXPECTED:
                raise TypeError(f"expect() has no {key}, only {', '.join(_EXPECTED)}")
            actual = getattr(self, key)
            value = tuple(value) if key in ("layers", "ranks") else value
            if actual != value:
                raise PackError(
                    f"{self.directory}: {key} is {_plain(actual)}, expected {_plain(value)}"
                )
        return self

    def rank(self, number):
        """Opens a rank."""
        if number not in self._manifest.ranks:
            raise PackError(
                f"{self.directory}: rank {number} is not in this pack, "
                f"which has {_plain(self.ranks)} of {self.ep_size}"
            )
        return Rank(self, number)

    def layer(self, name):
        """Index of the layer that a prefix ("model.layers.3") or a number (3) names."""
        if name in self.layers:
            return self.layers.index(name)
        found = [
            i
            for i, layer in enumerate(self.layers)
            if layer_number(layer) is not None and str(layer_number(layer)) == str(name)
        ]
        if len(found) == 1:
            return found[0]
        what = "is more than one layer" if found else "is not in this pack"
        raise PackError(f'{self.directory}: layer "{name}" {what}: {", ".join(self.layers)}')

    def placement(self, layer):
        """The expert of each physical expert, by its number in the checkpoint."""
        return list(self._rows[self.layer(layer)])

    def slot_of(self, layer, checkpoint_id):
        """Where the copies of an expert are: (rank, slot) of each, in order. Shared experts that
        are fused count on behind the routed ones."""
        per_rank = self.num_physical // self.ep_size
        shared = self.num_shared_experts if self.shared == "fused" else 0
        if not 0 <= checkpoint_id < self.num_experts + shared:
            raise PackError(
                f"expert {checkpoint_id}, but there are {self.num_experts}"
                + (f" and {shared} shared" if shared else "")
            )
        if checkpoint_id >= self.num_experts:
            slot = per_rank + checkpoint_id - self.num_experts
            return [(rank, slot) for rank in range(self.ep_size)]
        row = self._rows[self.layer(layer)]
        return [divmod(p, per_rank) for p, expert in enumerate(row) if expert == checkpoint_id]

    def config(self):
        """The model's config.json; None where the checkpoint had none."""
        said = self._manifest.config_xxh3
        if said is None:
            return None
        text = manifests.load_text(self.directory, "config.json", said)
        try:
            # As Python reads it, NaN and byte order mark included, for so do the engines.
            return json.loads(text.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise PackError(f"config.json: not JSON: {error}") from None


_EXPECTED = (
    "target nz alphas family ep_size num_physical num_experts num_shared_experts hidden_size "
    "moe_intermediate_size shared layers ranks"
).split()


def _plain(value):
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return "[" + ", ".join(str(v) for v in value) + "]"
    return str(value)


def layer_number(layer):
    """3 of "model.layers.3"; None for an MTP block or another name."""
    if layer.startswith("mtp.") or ".mtp." in layer:
        return None
    found = re.search(r"(?:^|\.)layers\.([0-9]+)\Z", layer)
    return int(found.group(1)) if found else None
