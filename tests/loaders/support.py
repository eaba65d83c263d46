# SPDX-License-Identifier: Apache-2.0
"""What tests of the loaders share. tests/cli/loaders.sh sets the environment: $ROOT, the program
$MOEPACK, and $LOAD_RANK, the C example, compiled. Tests run in an empty directory."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.environ["ROOT"]
sys.path.insert(0, os.path.join(ROOT, "lib/loaders"))

from moepack import xxh3  # noqa: E402

FIXTURES = os.path.join(ROOT, "testdata/fixtures")
WORK = tempfile.mkdtemp(dir=".")
atexit.register(shutil.rmtree, WORK)


def moepack(*words):
    """Runs a command, which has to succeed; returns what it prints."""
    done = subprocess.run([os.environ["MOEPACK"], *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def repack(source, target, *options):
    """A new pack of a checkpoint, 2 ranks unless options say otherwise."""
    out = os.path.join(tempfile.mkdtemp(dir=WORK), "pack")
    moepack("repack", source, "--target", target, "-o", out, "-q", "--ep", "2", *options)
    return out


def synth(*options):
    """A new synthetic checkpoint."""
    out = os.path.join(tempfile.mkdtemp(dir=WORK), "checkpoint")
    moepack("synth", "-o", out, "-q", *options)
    return out


def fixture(name):
    return os.path.join(FIXTURES, name)


def load_rank(pack, rank):
    """Status, output and message of the C example."""
    done = subprocess.run([os.environ["LOAD_RANK"], pack, str(rank)], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.removeprefix("load_rank: ").rstrip("\n")


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def parse_safetensors(path):
    """{name: (dtype, shape, bytes)} of a file that is sound."""
    data = read(path)
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    return {
        name: (e["dtype"], e["shape"], data[8 + n + e["data_offsets"][0] : 8 + n + e["data_offsets"][1]])
        for name, e in header.items()
    }


def checkpoint(path):
    """All tensors of a checkpoint's directory."""
    tensors = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            tensors.update(parse_safetensors(os.path.join(path, name)))
    return tensors


# ----------------------------------------------------------------------------
# Changing packs


def seal(root):
    """The text of a manifest with the digest that fits it."""
    root = {key: value for key, value in root.items() if key != "xxh3"}
    body = json.dumps(root, indent=2) + "\n"
    return body[:-3] + f',\n  "xxh3": "{xxh3.digest(body.encode())}"\n}}\n'


def edit_manifest(pack, change):
    """Changes members of moepack.json, and seals it anew."""
    path = os.path.join(pack, "moepack.json")
    root = json.loads(read(path))
    change(root)
    write(path, seal(root))


def shard(pack, rank=0):
    return os.path.join(pack, f"rank-{rank:03d}", "model-00001-of-00001.safetensors")


def edit_header(path, change):
    """Replaces the JSON of a safetensors header: change takes its text and returns another."""
    data = read(path)
    n = int.from_bytes(data[:8], "little")
    header = change(data[8 : 8 + n].decode().rstrip(" ")).encode()
    write(path, len(header).to_bytes(8, "little") + header + data[8 + n :])
