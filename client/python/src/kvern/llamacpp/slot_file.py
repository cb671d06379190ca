"""The file that llama.cpp's server saves of a slot: read strictly, written back bit by bit.

The format has no description and drifts between builds; what is below was read from files of the
builds that docs/llamacpp.md names. A file counts as understood only when exactly one known layout
consumes every byte of it with the row sizes of the model.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.errors import KvernError
from kvern.llamacpp import planes
from kvern.llamacpp.byte_reader import ByteReader
from kvern.llamacpp.planes import Plane
from kvern.llamacpp.refusal import malformed, unsupported
from kvern.models import ModelSpec

MAGIC = 0x67677371
VERSIONS = (3, 4)
# Bytes after the number of layers: newer builds have eight, two numbers that are 0 except where
# keys or values are q8_0, then 64: the size of the blocks in which the server rotates them.
_EXTRA_BYTES = (0, 8)
_MARK, _MARK_VERSION = -1, 1


@dataclass(frozen=True)
class Layout:
    """What a file says beside the cache, kept to write the next one alike.

    marked: the server's token list with a mark before it and a count of media after it. streams:
    in the file; stream: the one that is not empty. sequence: id that its cells carry.
    rotations: of keys and values beside RoPE, elements of a block, 0 where there is none.
    v_transposed: values lie element by element, as without flash attention.
    """

    version: int
    marked: bool
    streams: int
    stream: int
    sequence: int
    extra_bytes: int
    rotations: tuple[int, int]
    v_transposed: bool


@dataclass(frozen=True, eq=False)
class SlotFile:
    """One slot: tokens i32 [n], positions i32 [cells] of the cells, their keys and values."""

    layout: Layout
    tokens: NDArray[np.int32] = field(repr=False)
    positions: NDArray[np.int32] = field(repr=False)
    k: Plane
    v: Plane

    @property
    def cache_bytes(self) -> int:
        """Of keys and values."""
        return self.k.nbytes + self.v.nbytes

    def ordered(self, count: int | None = None) -> SlotFile:
        """With the first `count` tokens' cells in the order of the text; by default all of them.

        Errors: UNIMPLEMENTED where cells do not stand at 0, 1, 2, ... (a context that was shifted,
        sliding windows); INVALID_ARGUMENT for a count that the slot does not have.
        """
        order = np.argsort(self.positions, kind="stable")
        if not np.array_equal(self.positions[order], np.arange(order.size)):
            first, last = int(self.positions.min()), int(self.positions.max())
            raise unsupported(
                "slot: positions", f"{order.size} cells at {first} to {last}", "each of 0, 1, ..."
            )
        if self.tokens.size < order.size:
            raise malformed("slot: tokens", self.tokens.size, f"{order.size}, one for each cell")
        count = order.size if count is None else count
        if not 1 <= count <= order.size:
            raise malformed("tokens", count, f"1 to {order.size}, as many as the slot holds")
        kept = order[:count]
        return replace(
            self,
            tokens=self.tokens[:count],
            positions=self.positions[kept],
            k=Plane(self.k.kind, self.k.rows[:, :, kept]),
            v=Plane(self.v.kind, self.v.rows[:, :, kept]),
        )


def read(data: Any, spec: ModelSpec) -> SlotFile:
    """The slot in the bytes of a file; spec: geometry of the model it must be of.

    Errors: UNIMPLEMENTED for layouts that are not known, INVALID_ARGUMENT for a file that is cut
    off, or of another model.
    """
    head = ByteReader("slot file", data)
    version, marked, tokens = _read_head(head)
    understood: list[SlotFile] = []
    refused: list[KvernError] = []
    for extra_bytes in _EXTRA_BYTES:
        reader = ByteReader("slot file", data, head.offset)
        start = Layout(version, marked, 0, 0, 0, extra_bytes, (0, 0), False)
        try:
            understood.append(_read_streams(reader, spec, start, tokens))
        except KvernError as error:
            refused.append(error)
    if len(understood) == 1:
        return understood[0]
    if understood:
        raise unsupported("slot file", "a file that two layouts fit", "one layout that fits")
    messages = [error.message for error in refused]
    if messages[0] == messages[1]:
        raise refused[0]
    both = "; ".join(
        f"with {extra} extra bytes: {message}"
        for extra, message in zip(_EXTRA_BYTES, messages, strict=True)
    )
    raise unsupported("slot file", f"an unknown layout ({both})", "one that docs/llamacpp.md lists")


def write(slot: SlotFile) -> bytes:
    """The bytes of the file; of a file that was read, the same bytes."""
    layout = slot.layout
    words = [slot.tokens.astype("<i4").tobytes()]
    if layout.marked:
        words = [struct.pack("<3i", _MARK, _MARK_VERSION, slot.tokens.size), *words, bytes(4)]
    head = b"".join(words)
    parts = [struct.pack("<3I", MAGIC, layout.version, len(head) // 4), head]
    parts.append(struct.pack("<I", layout.streams))
    for stream in range(layout.streams):
        parts += _stream_parts(slot) if stream == layout.stream else [bytes(4)]
    return b"".join(parts)


def _read_head(reader: ByteReader) -> tuple[int, bool, NDArray[np.int32]]:
    """(version, marked, tokens)"""
    magic = reader.number("magic", "I")
    if magic != MAGIC:
        raise unsupported("slot file: magic", f"0x{magic:08x}", f"0x{MAGIC:08x} ('ggsq')")
    version = reader.number("version", "I")
    if version not in VERSIONS:
        raise unsupported("slot file: version", version, " or ".join(map(str, VERSIONS)))
    words = reader.numbers("words", reader.number("n_words", "I"))
    if not words.size or words[0] != _MARK:
        _check_tokens(words)
        return version, False, words
    if words.size < 4 or words[1] != _MARK_VERSION or words[2] != words.size - 4:
        raise unsupported(
            "slot file: token words", words[:3].tolist(), "-1, 1, n, n tokens and no media"
        )
    if words[-1] != 0:
        raise unsupported("slot file: n_media", int(words[-1]), "0: text alone")
    _check_tokens(words[3:-1])
    return version, True, words[3:-1]


def _check_tokens(tokens: NDArray[np.int32]) -> None:
    if tokens.size and tokens.min() < 0:
        raise unsupported("slot file: token", int(tokens.min()), "0 or more: text alone")


def _read_streams(
    reader: ByteReader, spec: ModelSpec, start: Layout, tokens: NDArray[np.int32]
) -> SlotFile:
    streams = reader.number("n_stream", "I")
    found: list[SlotFile] = []
    # An empty stream takes four bytes: a count beyond the file ends at its end.
    for stream in range(streams):
        cells = reader.number(f"streams[{stream}].cell_count", "I")
        if cells and found:
            raise unsupported("slot file: streams", "two that hold cells", "one")
        if cells:
            at = replace(start, streams=streams, stream=stream)
            found.append(_read_cells(reader, spec, cells, at))
    if reader.left:
        raise malformed("slot file", f"{reader.left} bytes after its end", "none")
    if not found:
        raise malformed("slot file: cells", 0, "1 or more: the slot is empty")
    return replace(found[0], tokens=tokens)


def _read_cells(reader: ByteReader, spec: ModelSpec, cells: int, at: Layout) -> SlotFile:
    meta = reader.numbers("cells", 3 * cells).reshape(cells, 3)
    if (meta[:, 1] != 1).any():
        raise unsupported("slot file: n_seq_id", int(meta[meta[:, 1] != 1, 1][0]), "1 in each cell")
    if (meta[:, 2] != meta[0, 2]).any():
        raise unsupported("slot file: seq_id", "several", "the same in each cell")
    v_transposed = reader.number("v_trans", "I")
    if v_transposed not in (0, 1):
        raise unsupported("slot file: v_trans", v_transposed, "0 or 1")
    layers = reader.number("n_layer", "I")
    if layers != spec.num_layers:
        raise malformed("slot file: n_layer", layers, f"{spec.num_layers} as the model has")
    layout = replace(
        at,
        sequence=int(meta[0, 2]),
        rotations=_read_rotations(reader, spec) if at.extra_bytes else (0, 0),
        v_transposed=v_transposed == 1,
    )
    k = _read_rows(reader, "K", spec, cells)
    v = _read_columns(reader, spec, cells) if v_transposed else _read_rows(reader, "V", spec, cells)
    nothing = np.zeros(0, np.int32)
    return SlotFile(layout, tokens=nothing, positions=meta[:, 0], k=k, v=v)


def _read_rotations(reader: ByteReader, spec: ModelSpec) -> tuple[int, int]:
    k, v = reader.number("extra bytes", "I"), reader.number("extra bytes", "I")
    for size in (k, v):
        if size and spec.head_dim % size:
            raise unsupported(
                "slot file: extra bytes", f"{k}, {v}", f"0 or parts of {spec.head_dim}"
            )
    return k, v


def _read_rows(reader: ByteReader, name: str, spec: ModelSpec, cells: int) -> Plane:
    kinds, layers = set(), []
    for layer in range(spec.num_layers):
        field_name = f"{name}[{layer}]"
        kind = planes.known_type(f"slot file: {field_name}", reader.number(field_name, "i"))
        want = spec.kv_heads * planes.row_bytes(f"slot file: {name}", kind, spec.head_dim)
        got = reader.number(f"{field_name}.row_bytes", "Q")
        if got != want:
            raise malformed(f"slot file: {field_name}.row_bytes", got, _row_words(want, spec))
        rows = np.frombuffer(reader.take(field_name, cells * want), np.uint8)
        layers.append(rows.reshape(cells, want))
        kinds.add(kind)
    return Plane(_one_kind(name, kinds), planes.by_head(layers, spec.kv_heads))


def _read_columns(reader: ByteReader, spec: ModelSpec, cells: int) -> Plane:
    """Values that lie element by element [kv_heads * head_dim, cells]."""
    kinds, layers, elements = set(), [], spec.kv_heads * spec.head_dim
    for layer in range(spec.num_layers):
        field_name = f"V[{layer}]"
        kind = planes.known_type(f"slot file: {field_name}", reader.number(field_name, "i"))
        if kind.block != 1:
            raise unsupported(f"slot file: {field_name}", f"{kind.name}, transposed", "f32 or f16")
        size = reader.number(f"{field_name}.element_bytes", "I")
        got = reader.number(f"{field_name}.n_embd_v", "I")
        if (size, got) != (kind.block_bytes, elements):
            raise malformed(
                f"slot file: {field_name}",
                f"{got} elements of {size} bytes",
                f"{elements} of {kind.block_bytes} as the model has",
            )
        columns = np.frombuffer(reader.take(field_name, elements * cells * size), np.uint8)
        layers.append(columns.reshape(elements, cells * size))
        kinds.add(kind)
    kind = _one_kind("V", kinds)
    return Plane(kind, planes.by_element(layers, spec.kv_heads, kind.block_bytes))


def _one_kind(name: str, kinds: set[planes.GgmlType]) -> planes.GgmlType:
    if len(kinds) != 1:
        got = " and ".join(sorted(kind.name for kind in kinds))
        raise unsupported(f"slot file: {name}", got or "no layers", "one type in all layers")
    return kinds.pop()


def _row_words(want: int, spec: ModelSpec) -> str:
    return f"{want}: {spec.kv_heads} heads of {spec.head_dim} as the model has"


def _stream_parts(slot: SlotFile) -> list[bytes]:
    layout, cells = slot.layout, slot.positions.size
    meta = np.empty((cells, 3), "<i4")
    meta[:, 0], meta[:, 1], meta[:, 2] = slot.positions, 1, layout.sequence
    parts = [struct.pack("<I", cells), meta.tobytes()]
    parts += [struct.pack("<2I", layout.v_transposed, len(slot.k.rows))]
    parts += [struct.pack("<2I", *layout.rotations)] if layout.extra_bytes else []
    parts += _row_parts(slot.k)
    if not layout.v_transposed:
        return parts + _row_parts(slot.v)
    size = slot.v.kind.block_bytes
    for layer in slot.v.rows:
        elements = layer.shape[0] * layer.shape[2] // size
        parts.append(struct.pack("<iII", slot.v.kind.code, size, elements))
        parts.append(planes.rows_of_elements(layer, size))
    return parts


def _row_parts(plane: Plane) -> list[bytes]:
    parts = []
    for layer in plane.rows:
        parts.append(struct.pack("<iQ", plane.kind.code, layer.shape[0] * layer.shape[2]))
        parts.append(planes.rows_of_tokens(layer))
    return parts
