# SPDX-License-Identifier: Apache-2.0
"""XXH3-128 with seed 0, in the hexadecimal form of xxh128sum.

Algorithm: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md

`digest` takes the xxhash module or the libxxhash of the system where one of them is there. `scalar`
defines the value and needs neither; at some 10 MB/s it does for a manifest, not for weights.
"""

import ctypes
import functools
import struct

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
M32, M64 = (1 << 32) - 1, (1 << 64) - 1

STRIPE = 64  # bytes that the eight accumulators take at a time
STRIPES = (len(SECRET) - STRIPE) // 8  # of a block: the secret moves on by 8 bytes a stripe


def _u64(data, at):
    return int.from_bytes(data[at : at + 8], "little")


def _key(at):
    """The 64-bit words of the secret at a place and behind it, mixed."""
    return _u64(SECRET, at) ^ _u64(SECRET, at + 8)


def _swap(value, size):
    return int.from_bytes(value.to_bytes(size, "little"), "big")


def _avalanche(h):
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & M64
    return h ^ h >> 32


def _avalanche64(h):
    h ^= h >> 33
    h = h * P64_2 & M64
    h ^= h >> 29
    h = h * P64_3 & M64
    return h ^ h >> 32


def _fold(a, b):
    """Both halves of the product of 64-bit numbers, xored."""
    product = a * b
    return (product & M64) ^ product >> 64


def _upto_16(data, n):
    if n == 0:
        return _avalanche64(_key(64)), _avalanche64(_key(80))
    if n <= 3:
        low = data[0] << 16 | data[n >> 1] << 24 | data[n - 1] | n << 8
        high = _swap(low, 4)
        high = (high << 13 | high >> 19) & M32
        words = struct.unpack_from("<4I", SECRET)
        return _avalanche64(low ^ words[0] ^ words[1]), _avalanche64(high ^ words[2] ^ words[3])
    if n <= 8:
        value = int.from_bytes(data[:4], "little") | int.from_bytes(data[n - 4 :], "little") << 32
        product = (value ^ _key(16)) * (P64_1 + (n << 2))
        low, high = product & M64, product >> 64
        high = high + (low << 1) & M64
        low ^= high >> 3
        low ^= low >> 35
        low = low * 0x9FB21C651E98DF25 & M64
        return low ^ low >> 28, _avalanche(high)
    first, last = _u64(data, 0), _u64(data, n - 8)
    product = (first ^ last ^ _key(32)) * P64_1
    low, high = (product & M64) + (n - 1 << 54) & M64, product >> 64
    last ^= _key(48)
    high = high + last + (last & M32) * (P32_2 - 1) & M64
    product = (low ^ _swap(high, 8)) * P64_2
    return _avalanche(product & M64), _avalanche((product >> 64) + high * P64_2 & M64)


def _mix(acc, data, one, two, secret, seed=0):
    """Takes 16 bytes at each of two places into a pair of accumulators."""
    a, b, c, d = _u64(data, one), _u64(data, one + 8), _u64(data, two), _u64(data, two + 8)
    s = struct.unpack_from("<4Q", SECRET, secret)
    low = acc[0] + _fold(a ^ s[0] + seed & M64, b ^ s[1] - seed & M64) & M64
    high = acc[1] + _fold(c ^ s[2] + seed & M64, d ^ s[3] - seed & M64) & M64
    return low ^ c + d & M64, high ^ a + b & M64


def _upto_240(data, n):
    acc = n * P64_1 & M64, 0
    if n <= 128:
        for i in reversed(range((n + 31) // 32)):
            acc = _mix(acc, data, 16 * i, n - 16 * (i + 1), 32 * i)
    else:
        for i in range(4):
            acc = _mix(acc, data, 32 * i, 32 * i + 16, 32 * i)
        acc = _avalanche(acc[0]), _avalanche(acc[1])
        for i in range(4, n // 32):
            acc = _mix(acc, data, 32 * i, 32 * i + 16, 32 * (i - 4) + 3)
        acc = _mix(acc, data, n - 16, n - 32, 136 - 17 - 16)
    low, high = acc
    return (
        _avalanche(low + high & M64),
        -_avalanche(low * P64_1 + high * P64_4 + n * P64_2 & M64) & M64,
    )


def _accumulate(acc, words, secret):
    """Takes a stripe of eight words into eight accumulators, whose sums are cut to 64 bits later."""
    for i in range(8):
        keyed = words[i] ^ secret[i]
        acc[i] += (keyed & M32) * (keyed >> 32)
        acc[i ^ 1] += words[i]


def _merge(acc, secret, start):
    s = struct.unpack_from("<8Q", SECRET, secret)
    for i in range(0, 8, 2):
        start += _fold(acc[i] ^ s[i], acc[i + 1] ^ s[i + 1])
    return _avalanche(start & M64)


def _long(data, n):
    acc = [P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1]
    secrets = [struct.unpack_from("<8Q", SECRET, 8 * i) for i in range(STRIPES)]
    last = struct.unpack_from("<8Q", SECRET, len(SECRET) - STRIPE)
    stripes = (n - 1) // STRIPE  # whole ones; what remains is in the last 64 bytes
    for i in range(stripes):
        _accumulate(acc, struct.unpack_from("<8Q", data, STRIPE * i), secrets[i % STRIPES])
        if i % STRIPES == STRIPES - 1:
            for lane in range(8):
                a = acc[lane] & M64
                acc[lane] = (a ^ a >> 47 ^ last[lane]) * P32_1 & M64
    end = struct.unpack_from("<8Q", SECRET, len(SECRET) - STRIPE - 7)
    _accumulate(acc, struct.unpack_from("<8Q", data, n - STRIPE), end)
    acc = [a & M64 for a in acc]
    return (
        _merge(acc, 11, n * P64_1 & M64),
        _merge(acc, len(SECRET) - STRIPE - 11, ~(n * P64_2) & M64),
    )


def scalar(data):
    """The digest of bytes, by this file alone."""
    n = len(data)
    low, high = (_upto_16 if n <= 16 else _upto_240 if n <= 240 else _long)(data, n)
    return f"{high:016x}{low:016x}"


@functools.lru_cache(maxsize=None)
def fast():
    """A function that digests a contiguous buffer at memory speed; None where there is none."""
    try:
        import xxhash

        return lambda data: xxhash.xxh3_128_hexdigest(data)
    except ImportError:
        pass
    try:
        library = ctypes.CDLL("libxxhash.so.0")
        function = library.XXH3_128bits
    except (OSError, AttributeError):
        return None

    class Hash(ctypes.Structure):
        _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]

    function.restype = Hash
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

    def by_library(data):
        view = memoryview(data)
        # Only a writable buffer tells ctypes its address; bytes are passed as they are.
        where = bytes(view) if view.readonly else (ctypes.c_char * view.nbytes).from_buffer(view)
        result = function(where, view.nbytes)
        return f"{result.high:016x}{result.low:016x}"

    return by_library


def digest(data):
    """The digest of a contiguous buffer."""
    return (fast() or scalar)(data)
