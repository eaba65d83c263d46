# SPDX-License-Identifier: Apache-2.0
"""The few operations of torch that the loaders call, on strided bytes: enough to tell whether they
are called rightly, shapes and strides included."""

import itertools
from types import SimpleNamespace

__version__ = "0-stub"


class dtype:
    def __init__(self, name, size):
        self.name, self.itemsize = name, size

    def __repr__(self):
        return f"torch.{self.name}"


uint8, int8, float8_e4m3fn = dtype("uint8", 1), dtype("int8", 1), dtype("float8_e4m3fn", 1)
bfloat16, int32, float32, int64 = (
    dtype("bfloat16", 2), dtype("int32", 4), dtype("float32", 4), dtype("int64", 8),
)  # fmt: skip


def _strides(shape):
    strides, step = [], 1
    for extent in reversed(shape):
        strides.insert(0, step)
        step *= extent
    return tuple(strides)


class Tensor:
    def __init__(self, storage, dtype, shape, strides=None, device="cpu"):
        self.storage, self.dtype, self.device = storage, dtype, device
        self.shape = tuple(shape)
        self.strides = tuple(strides or _strides(self.shape))

    def stride(self):
        return self.strides

    def is_contiguous(self):
        return self.strides == _strides(self.shape)

    def _elements(self):
        """Byte offsets of the elements in logical order."""
        size = self.dtype.itemsize
        for index in itertools.product(*map(range, self.shape)):
            yield size * sum(i * s for i, s in zip(index, self.strides))

    def tobytes(self):
        """The elements in logical order."""
        if self.is_contiguous():
            return bytes(self.storage)
        size = self.dtype.itemsize
        return b"".join(bytes(self.storage[at : at + size]) for at in self._elements())

    def view(self, dtype):
        assert self.is_contiguous() and dtype.itemsize and len(self.shape) == 1
        return Tensor(self.storage, dtype, (len(self.storage) // dtype.itemsize,), None, self.device)

    def reshape(self, *shape):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape
        whole = self.contiguous()
        count = 1
        for extent in shape:
            count *= extent
        assert count * self.dtype.itemsize == len(whole.storage), (self.shape, shape)
        return Tensor(whole.storage, self.dtype, shape, None, self.device)

    def transpose(self, a, b):
        order = list(range(len(self.shape)))
        order[a], order[b] = order[b], order[a]
        return Tensor(
            self.storage, self.dtype, [self.shape[i] for i in order],
            [self.strides[i] for i in order], self.device,
        )  # fmt: skip

    def contiguous(self):
        if self.is_contiguous():
            return self
        return Tensor(bytearray(self.tobytes()), self.dtype, self.shape, None, self.device)

    def to(self, device):
        if device == self.device:
            return self
        return Tensor(bytearray(self.storage), self.dtype, self.shape, self.strides, device)

    def copy_(self, other):
        assert (self.shape, self.dtype) == (other.shape, other.dtype) and self.is_contiguous()
        self.storage[:] = other.tobytes()
        return self

    def tolist(self):
        raise NotImplementedError


def frombuffer(buffer, dtype):
    view = memoryview(buffer)
    assert not view.readonly, "torch warns of buffers that are not writable"
    assert view.contiguous and dtype is uint8
    return Tensor(view, dtype, (view.nbytes,))


def empty(shape, dtype, device="cpu"):
    count = dtype.itemsize
    for extent in shape:
        count *= extent
    return Tensor(bytearray(count), dtype, shape, None, device)


class Parameter:
    def __init__(self, data, requires_grad=True):
        assert not requires_grad, "only floating point tensors can have gradients"
        self.data = data

    @property
    def device(self):
        return self.data.device


nn = SimpleNamespace(Parameter=Parameter)
