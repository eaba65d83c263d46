# SPDX-License-Identifier: Apache-2.0
"""Makes the wheel of the package beside it, by PEP 517 and the standard library alone.

The same files give the same bytes: no time, no user.
"""

import base64
import hashlib
import os
import re
import zipfile

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGE = os.path.join(HERE, "moepack")

ENTRY_POINTS = """\
[sglang.srt.plugins]
moepack = moepack.sglang:register

[vllm.general_plugins]
moepack = moepack.vllm:register
"""

WHEEL = """\
Wheel-Version: 1.0
Generator: moepack
Root-Is-Purelib: true
Tag: py3-none-any
"""

METADATA = """\
Metadata-Version: 2.1
Name: moepack
Version: {version}
Summary: Loads packs of moepack into inference engines
License: Apache-2.0
Requires-Python: >=3.9
Provides-Extra: digest
Requires-Dist: xxhash; extra == "digest"
Provides-Extra: zstd
Requires-Dist: zstandard; extra == "zstd"
"""


def _read(path):
    with open(path, "rb") as file:
        return file.read()


def _version():
    text = _read(os.path.join(PACKAGE, "__init__.py")).decode()
    return re.search(r'^__version__ = "(.*)"$', text, re.MULTILINE).group(1)


def _record(name, data):
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(data)}\n"


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """The hook that pip calls. Returns the name of the wheel."""
    version = _version()
    info = f"moepack-{version}.dist-info"
    files = {
        f"moepack/{name}": _read(os.path.join(PACKAGE, name))
        for name in sorted(os.listdir(PACKAGE))
        if name.endswith(".py")
    }
    files[f"{info}/METADATA"] = METADATA.format(version=version).encode()
    files[f"{info}/WHEEL"] = WHEEL.encode()
    files[f"{info}/entry_points.txt"] = ENTRY_POINTS.encode()
    record = "".join(_record(name, data) for name, data in files.items())
    files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    name = f"moepack-{version}-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in files.items():
            entry = zipfile.ZipInfo(path)  # of 1980
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return name
