"""Shared memory that two processes may map without fear: its size is sealed."""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.errors import KvernError


class SealedMemory:
    """A mapped memfd of fixed size. The mapping lives as long as any array over it does."""

    def __init__(self, size_bytes: int) -> None:
        """Errors: RESOURCE_EXHAUSTED when the kernel has no such memory."""
        self.size_bytes = size_bytes
        self._fd = -1
        try:
            self._fd = os.memfd_create("kvern-pool", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._fd, size_bytes)
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, seals)
            self._bytes = np.frombuffer(mmap.mmap(self._fd, size_bytes), np.uint8)
        except (OSError, ValueError, OverflowError) as error:
            self.close_file()
            raise KvernError(
                "RESOURCE_EXHAUSTED", f"shared memory of {size_bytes} bytes: {error}"
            ) from error

    def fileno(self) -> int:
        return self._fd

    def close_file(self) -> None:
        """The descriptor is needed for attaching only; the mapping stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """All of it, [size_bytes]."""
        return self._bytes

    @property
    def address(self) -> int:
        return int(self._bytes.__array_interface__["data"][0])

    def array(self, shape: tuple[int, ...], dtype: Any, offset_bytes: int = 0) -> NDArray[Any]:
        """A row-major array inside it."""
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        raw: NDArray[Any] = self._bytes[offset_bytes : offset_bytes + count].view(dtype)
        return raw.reshape(shape)

    def __del__(self) -> None:
        self.close_file()
