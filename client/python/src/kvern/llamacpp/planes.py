"""Keys or values of a slot, by head, in the bytes of their ggml type.

A head's row is a whole number of bytes in every type below, so that gathering tokens moves bytes
and never quantizes anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.llamacpp.refusal import unsupported


@dataclass(frozen=True)
class GgmlType:
    """code: in the file. bytes of a block of `block` elements."""

    code: int
    name: str
    block: int
    block_bytes: int


# Codes and blocks as in ggml.h and ggml-common.h of llama.cpp: q8_0 is an f16 scale and 32 i8.
F32 = GgmlType(0, "f32", 1, 4)
F16 = GgmlType(1, "f16", 1, 2)
Q8_0 = GgmlType(8, "q8_0", 32, 34)
_TYPES = {kind.code: kind for kind in (F32, F16, Q8_0)}
_FLOATS: dict[str, np.dtype[Any]] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2")}


@dataclass(frozen=True, eq=False)
class Plane:
    """Keys or values, u8 [layers, kv_heads, tokens, bytes of one head's row]."""

    kind: GgmlType
    rows: NDArray[np.uint8] = field(repr=False)

    @property
    def tokens(self) -> int:
        return int(self.rows.shape[2])

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes

    def floats(self) -> NDArray[Any]:
        """Values [layers, kv_heads, tokens, head_dim]: a view of f32 and f16; f32 of q8_0."""
        if self.kind.name in _FLOATS:
            values: NDArray[Any] = self.rows.view(_FLOATS[self.kind.name])
            return values
        blocks = self.rows.reshape(*self.rows.shape[:3], -1, Q8_0.block_bytes)
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        steps = blocks[..., 2:].view(np.int8)
        return (steps * scales).reshape(*self.rows.shape[:3], -1)

    def gather(self, kept: NDArray[np.int32]) -> Plane:
        """Tokens kept [layers, kv_heads, n] of each head, bit by bit."""
        return Plane(self.kind, np.take_along_axis(self.rows, kept[..., np.newaxis], axis=2))

    @staticmethod
    def of(values: NDArray[Any]) -> Plane:
        """f32 or f16 values [layers, kv_heads, tokens, head_dim]."""
        kind = F32 if values.dtype == np.float32 else F16
        data = np.ascontiguousarray(values, _FLOATS[kind.name])
        return Plane(kind, data.view(np.uint8))


def known_type(field: str, code: int) -> GgmlType:
    """Errors: UNIMPLEMENTED."""
    if code not in _TYPES:
        known = ", ".join(f"{kind.code} ({kind.name})" for kind in _TYPES.values())
        raise unsupported(field, f"ggml type {code}", f"one of {known}")
    return _TYPES[code]


def row_bytes(field: str, kind: GgmlType, head_dim: int) -> int:
    """Bytes of one head's row. Errors: UNIMPLEMENTED where blocks straddle heads."""
    if head_dim % kind.block:
        raise unsupported(
            field, f"{kind.name} with head_dim {head_dim}", f"a multiple of {kind.block}"
        )
    return head_dim // kind.block * kind.block_bytes


def by_head(layers: Sequence[NDArray[np.uint8]], kv_heads: int) -> NDArray[np.uint8]:
    """From rows of all heads [tokens, bytes], one array per layer."""
    stacked = np.stack(layers)
    count, tokens, size = stacked.shape
    split = stacked.reshape(count, tokens, kv_heads, size // kv_heads)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def by_element(
    layers: Sequence[NDArray[np.uint8]], kv_heads: int, element_bytes: int
) -> NDArray[np.uint8]:
    """From transposed values [kv_heads * head_dim, tokens * element_bytes], one array per layer."""
    stacked = np.stack(layers)
    count, elements, size = stacked.shape
    split = stacked.reshape(
        count, kv_heads, elements // kv_heads, size // element_bytes, element_bytes
    )
    turned = split.transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(turned).reshape(*turned.shape[:3], -1)


def rows_of_tokens(layer: NDArray[np.uint8]) -> bytes:
    """One layer [kv_heads, tokens, bytes] as the file has it: token by token."""
    return np.ascontiguousarray(layer.transpose(1, 0, 2)).tobytes()


def rows_of_elements(layer: NDArray[np.uint8], element_bytes: int) -> bytes:
    """One layer [kv_heads, tokens, bytes] as the file has transposed values: element by element."""
    heads, tokens, size = layer.shape
    split = layer.reshape(heads, tokens, size // element_bytes, element_bytes)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).tobytes()
