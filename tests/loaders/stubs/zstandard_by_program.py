# SPDX-License-Identifier: Apache-2.0
"""The part of the zstandard module that the reader calls, by the zstd program."""

import io
import subprocess


class ZstdError(Exception):
    pass


ZstdError.__module__ = "zstandard"


class ZstdDecompressor:
    def stream_reader(self, source, read_across_frames=False):
        assert read_across_frames
        done = subprocess.run(["zstd", "-dcq"], input=source.readall(), capture_output=True)
        if done.returncode != 0:
            raise ZstdError(done.stderr.decode().strip())
        return io.BytesIO(done.stdout)
