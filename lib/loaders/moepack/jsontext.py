# SPDX-License-Identifier: Apache-2.0
"""JSON as files of a pack have it: UTF-8, no name twice in an object, no NaN, numbers of 64 bits.

What is wrong is said with the name of the text and of the member, in the words of the C library.
"""

import json

from .errors import PackError

LIMIT = 1 << 30  # bytes of a text


def _refuse_constant(word):
    raise ValueError(f"{word} is not a number")


def _integer(digits):
    if len(digits) > 20:  # of 64 bits; Python would take any number, slowly
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _whole(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        seen = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f'"{name}" appears twice')
    return members


def parse(data, what, pairs_hook=_whole):
    """The value of a JSON text in bytes."""
    data = bytes(data)
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=pairs_hook,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
        if b"\\u" in data:  # half of a surrogate pair may come of it, which is no UTF-8
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        return value
    except RecursionError:
        raise PackError(f"{what}: not JSON: nested too deeply") from None
    except ValueError as error:  # also what is no UTF-8
        raise PackError(f"{what}: not JSON: {error}") from None


_NAMES = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a fraction",
    bool: "a boolean",
    type(None): "null",
}


def member(value, key, kind, what):
    """A member of an object, of a type: dict, list, str or int (0 or more, below 2^63)."""
    if type(value) is not dict:
        raise PackError(f"{what}: expected an object")
    if key not in value:
        raise PackError(f'{what}: "{key}" is missing')
    found = value[key]
    if type(found) is not kind:
        raise PackError(f'{what}: "{key}" is {_NAMES[type(found)]}, expected {_NAMES[kind]}')
    if kind is int and found < 0:
        raise PackError(f'{what}: "{key}" is {found}, expected 0 or more')
    if kind is int and found >> 63:
        raise PackError(f'{what}: "{key}" is {found}, over 63 bits')
    return found


def flag(value, key, what):
    """A member that is true or false."""
    if type(value) is not dict or type(value.get(key)) is not bool:
        raise PackError(f'{what}: "{key}" is not true or false')
    return value[key]
