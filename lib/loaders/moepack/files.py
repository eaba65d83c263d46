# SPDX-License-Identifier: Apache-2.0
"""Files of a pack, opened so that nothing but a regular file is waited for or read."""

import os
import stat

from .errors import PackError
from .jsontext import LIMIT


def open_regular(path, missing):
    """Opens a file to read. missing: the message where it is not there.

    The kind of file is asked of what has been opened, and opening never waits, as it would for a
    pipe, so that nobody can put another file in its place in between.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise PackError(missing) from None
    except OSError as error:
        raise PackError(f'cannot open "{path}": {error.strerror}') from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PackError("not a regular file")
        return os.fdopen(fd, "rb", buffering=0)
    except BaseException:
        os.close(fd)
        raise


def read_text(path, name):
    """The bytes of a text; name: what messages call it."""
    try:
        file = open_regular(path, "missing")
    except PackError as error:
        raise PackError(f"{name}: {error}") from None
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > LIMIT:
            raise PackError(f"{name}: {size} bytes, over {LIMIT}")
        data = file.readall()
    if len(data) > LIMIT:  # it grew
        raise PackError(f"{name}: {len(data)} bytes, over {LIMIT}")
    return data
