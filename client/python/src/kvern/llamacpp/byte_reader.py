"""A cursor over the bytes of a file that nobody vouches for: every size is checked before use."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.llamacpp.refusal import malformed


class ByteReader:
    """Reads little-endian fields, and refuses to pass the end. Errors: INVALID_ARGUMENT.

    name: of the file, for messages. data: bytes, or a map of a file; offset: of the first byte.
    """

    def __init__(self, name: str, data: Any, offset: int = 0) -> None:
        self.name = name
        self.offset = offset
        self._data = memoryview(data)

    @property
    def left(self) -> int:
        """Bytes that were not read yet."""
        return len(self._data) - self.offset

    def take(self, field: str, size: int) -> memoryview:
        """The next `size` bytes, not copied."""
        if size > max(self.left, 0):
            raise malformed(f"{self.name}: {field}", f"{self.left} bytes", f"{size} more bytes")
        self.offset += size
        return self._data[self.offset - size : self.offset]

    def number(self, field: str, form: str) -> Any:
        """One number; form: a letter of the module struct."""
        return struct.unpack("<" + form, self.take(field, struct.calcsize("<" + form)))[0]

    def numbers(self, field: str, count: int) -> NDArray[np.int32]:
        """`count` numbers of 32 bits [count]."""
        return np.frombuffer(self.take(field, 4 * count), "<i4")

    def floats(self, field: str, count: int) -> NDArray[np.float32]:
        """`count` numbers f32 [count]."""
        return np.frombuffer(self.take(field, 4 * count), "<f4")
