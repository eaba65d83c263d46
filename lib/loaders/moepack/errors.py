# SPDX-License-Identifier: Apache-2.0
"""The one exception of this package."""

# Names come from untrusted files: a message stays one line and cannot steer a terminal.
_HIDDEN = {code: "?" for code in (*range(0x20), 0x7F)}


class PackError(Exception):
    """A pack that is not whole, or not what was asked for; the text is one line."""

    def __init__(self, text):
        super().__init__(text.translate(_HIDDEN))
