"""Slot files for tests, packed field by field and apart from the code that reads them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

import kvern

SPEC = kvern.ModelSpec(
    num_layers=2,
    kv_heads=2,
    head_dim=64,
    q_heads=4,
    rope=kvern.Rope(theta=10000.0, layout="interleaved"),
)
CODES = {"f32": 0, "f16": 1, "q8_0": 8}
_DTYPES = {"f32": "<f4", "f16": "<f2"}


@dataclass
class Sample:
    """What the file is made of. k, v: f32 [layers, kv_heads, tokens, head_dim], q8_0 at most 127
    steps of 1 / 128, so that every type holds them exactly."""

    tokens: int = 40
    version: int = 4
    extra: bytes = bytes(8)
    marked: bool = True
    streams: int = 2
    stream: int = 0
    k_type: str = "f16"
    v_type: str = "f16"
    transposed: bool = False
    seed: int = 3
    words: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        shape = (2, SPEC.num_layers, SPEC.kv_heads, self.tokens, SPEC.head_dim)
        steps = random.integers(-127, 128, shape).astype(np.float32)
        self.k, self.v = steps / 128
        self.words = self.words or random.integers(1, 1000, self.tokens).tolist()
        self.positions = self.positions or list(range(self.tokens))

    def pack(self) -> bytes:
        count = len(self.words)
        words = [-1, 1, count, *self.words, 0] if self.marked else self.words
        head = struct.pack("<4sII", b"qsgg", self.version, len(words))
        blob = head + struct.pack(f"<{len(words)}i", *words) + struct.pack("<I", self.streams)
        for stream in range(self.streams):
            blob += self._stream() if stream == self.stream else struct.pack("<I", 0)
        return blob

    def _stream(self) -> bytes:
        out = struct.pack("<I", self.tokens)
        for position in self.positions:
            out += struct.pack("<iIi", position, 1, 0)
        out += struct.pack("<II", int(self.transposed), SPEC.num_layers) + self.extra
        for layer in self.k:
            out += self._rows(layer, self.k_type)
        for layer in self.v:
            out += self._columns(layer) if self.transposed else self._rows(layer, self.v_type)
        return out

    def _rows(self, layer: NDArray[np.float32], kind: str) -> bytes:
        """[kv_heads, tokens, head_dim] token by token."""
        rows = b""
        for token in range(self.tokens):
            for head in layer:
                rows += _quantized(head[token]) if kind == "q8_0" else _raw(head[token], kind)
        return struct.pack("<iQ", CODES[kind], len(rows) // self.tokens) + rows

    def _columns(self, layer: NDArray[np.float32]) -> bytes:
        """[kv_heads, tokens, head_dim] element by element."""
        columns = b"".join(
            _raw(head[:, element], self.v_type)
            for head in layer
            for element in range(SPEC.head_dim)
        )
        size = np.dtype(_DTYPES[self.v_type]).itemsize
        elements = SPEC.kv_heads * SPEC.head_dim
        return struct.pack("<iII", CODES[self.v_type], size, elements) + columns


def _raw(values: NDArray[np.float32], kind: str) -> bytes:
    return values.astype(_DTYPES[kind]).tobytes()


def _quantized(values: NDArray[np.float32]) -> bytes:
    """q8_0 with a scale of 1 / 128."""
    blocks = (values * 128).astype(np.int8).reshape(-1, 32)
    return b"".join(np.float16(1 / 128).tobytes() + block.tobytes() for block in blocks)
