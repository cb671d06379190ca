"""Sequences in the server's store: put, append, fetch, list, delete."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern import results, rpc
from kvern.arrays import Planes, Raw, numpy_result, torch_result
from kvern.dtypes import DTYPE_NAMES, RAW_DTYPES, WIRE_DTYPES
from kvern.errors import KvernError, invalid
from kvern.request import Job, positions
from kvern.rpc import Operation
from kvern.session import Session
from kvern.v1 import store_pb2

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredSequence:
    """What the store holds. name: ``sequences/{sequence}``. layer_indices: empty for all of the
    model's. lengths: tokens per (layer, kv_head), empty where all hold tokens. released: may be
    evicted."""

    name: str
    model: str
    layer_indices: tuple[int, ...]
    dtype: str
    tokens: int
    logical_tokens: int
    epoch: int
    lengths: tuple[int, ...] = field(repr=False)
    k_codec: str
    v_codec: str
    stored_bytes: int
    released: bool

    @staticmethod
    def from_proto(stored: store_pb2.StoredSequence) -> StoredSequence:
        return StoredSequence(
            name=stored.name,
            model=stored.model,
            layer_indices=tuple(stored.layer_indices),
            dtype=DTYPE_NAMES.get(stored.dtype, ""),
            tokens=stored.num_tokens,
            logical_tokens=stored.num_logical_tokens,
            epoch=stored.epoch,
            lengths=tuple(stored.lengths),
            k_codec=stored.k_codec,
            v_codec=stored.v_codec,
            stored_bytes=stored.stored_bytes,
            released=stored.released,
        )


@dataclass(frozen=True, eq=False)
class FetchedSequence:
    """A sequence taken out of the store.

    k, v: [layers, kv_heads, tokens, head_dim], None when it was asked for packed and a codec packed
    it; positions: i32 [tokens], or [layers, kv_heads, tokens] with -1 beyond a row's length.
    """

    sequence: StoredSequence
    k: Any = field(repr=False)
    v: Any = field(repr=False)
    packed: results.PackedCache | None = field(repr=False)
    positions: NDArray[np.int32] = field(repr=False)


@dataclass
class Fetched:
    """A stream's bytes, put in place as they come."""

    header: store_pb2.FetchHeader = field(default_factory=store_pb2.FetchHeader)
    parts: dict[int, bytearray] = field(default_factory=dict)
    filled: dict[int, int] = field(default_factory=dict)

    def take(self, message: store_pb2.FetchSequenceResponse) -> None:
        if message.HasField("header"):
            self.header = message.header
            dense = self.header.dense_bytes
            sizes = {
                store_pb2.Chunk.PART_K: dense,
                store_pb2.Chunk.PART_V: dense,
                store_pb2.Chunk.PART_PACKED: self.header.packed_bytes,
            }
            self.parts = {part: bytearray(size) for part, size in sizes.items()}
            self.filled = dict.fromkeys(sizes, 0)
            return
        chunk = message.chunk
        at, end = chunk.offset, chunk.offset + len(chunk.data)
        if at != self.filled.get(chunk.part) or end > len(self.parts[chunk.part]):
            raise KvernError(
                "DATA_LOSS",
                f"fetch: got a chunk of part {chunk.part} at byte {at}, want parts without gaps "
                "and as long as the header says",
            )
        self.parts[chunk.part][at:end] = chunk.data
        self.filled[chunk.part] = end

    def check(self) -> None:
        if not self.parts or any(self.filled[p] != len(data) for p, data in self.parts.items()):
            raise KvernError("DATA_LOSS", "fetch: got fewer bytes than the header says")

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.header.sequence.dtype]

    def dense(self, rows: tuple[int, int], head_dim: int) -> tuple[Raw, Raw]:
        """Raw k and v of rows [layers, kv_heads]."""
        shape = (*rows, self.header.sequence.num_tokens, head_dim)
        k, v = (
            np.frombuffer(self.parts[part], RAW_DTYPES[self.dtype]).reshape(shape)
            for part in (store_pb2.Chunk.PART_K, store_pb2.Chunk.PART_V)
        )
        return k, v

    def packed(self, rows: tuple[int, int], head_dim: int) -> results.PackedCache | None:
        if not self.header.packed_table:
            return None
        return results.packed(
            self.header.packed_table,
            self.header.mean_key,
            self.parts[store_pb2.Chunk.PART_PACKED],
            self.dtype,
            (*rows, head_dim),
        )


def put(
    header: store_pb2.StoredSequence, k: Planes[Any], v: Planes[Any]
) -> Operation[store_pb2.StoredSequence]:
    def messages() -> Iterator[store_pb2.PutSequenceRequest]:
        yield store_pb2.PutSequenceRequest(header=header)
        for chunk in _chunks(k, v):
            yield store_pb2.PutSequenceRequest(chunk=chunk)

    return (yield from rpc.upload(rpc.PUT_SEQUENCE, messages)).sequence


def append(
    name: str, k: Planes[Any], v: Planes[Any], epoch: int, where: Any
) -> Operation[StoredSequence]:
    header = store_pb2.AppendHeader(name=full_name(name), epoch=epoch, num_tokens=k.shape[2])
    if where is not None:
        header.positions.extend(positions(where).values)

    def messages() -> Iterator[store_pb2.AppendSequenceRequest]:
        yield store_pb2.AppendSequenceRequest(header=header)
        for chunk in _chunks(k, v):
            yield store_pb2.AppendSequenceRequest(chunk=chunk)

    answer = yield from rpc.upload(rpc.APPEND_SEQUENCE, messages)
    return StoredSequence.from_proto(answer.sequence)


def fetch(name: str, decode: bool) -> Operation[Fetched]:
    fetched = Fetched()
    request = store_pb2.FetchSequenceRequest(name=name, decode=decode)
    yield from rpc.download(rpc.FETCH_SEQUENCE, request, fetched.take)
    fetched.check()
    return fetched


def put_sequence(
    session: Session,
    name: str,
    job: Job[Any],
) -> Operation[StoredSequence]:
    """job: k, v, model and inputs of the sequence; its policy is not asked."""
    model = yield from session.model(job.model_or_shape())
    header = store_pb2.StoredSequence(
        name=full_name(name),
        model=model.name,
        layer_indices=job.layer_indices,
        dtype=WIRE_DTYPES[job.k.dtype],
        num_tokens=job.k.shape[2],
        num_logical_tokens=job.inputs.logical_tokens,
    )
    if job.inputs.positions is not None:
        header.positions.CopyFrom(positions(job.inputs.positions))
    return StoredSequence.from_proto((yield from put(header, job.k, job.v)))


def fetch_sequence(
    session: Session, name: str, packed: bool, kind: str
) -> Operation[FetchedSequence]:
    """kind: ``numpy`` or ``torch``."""
    if kind not in ("numpy", "torch"):
        raise invalid("kind", f"kind: got '{kind}', want numpy or torch")
    fetched = yield from fetch(full_name(name), decode=not packed)
    stored = fetched.header.sequence
    spec = (yield from session.model(stored.model)).spec
    rows = (len(stored.layer_indices) or spec.num_layers, spec.kv_heads)
    found = fetched.packed(rows, spec.head_dim)
    k = v = None
    if found is None:
        as_kind = torch_result if kind == "torch" else numpy_result
        k, v = (as_kind(raw, fetched.dtype) for raw in fetched.dense(rows, spec.head_dim))
    where = np.array(stored.positions.values, np.int32)
    if not where.size:
        where = np.arange(stored.num_tokens, dtype=np.int32)
    if stored.positions.per_head:
        where = where.reshape(*rows, -1)
    return FetchedSequence(StoredSequence.from_proto(stored), k, v, found, where)


def get(name: str) -> Operation[StoredSequence]:
    request = store_pb2.GetSequenceRequest(name=full_name(name))
    return StoredSequence.from_proto((yield from rpc.call(rpc.GET_SEQUENCE, request)).sequence)


def listing() -> Operation[tuple[StoredSequence, ...]]:
    answer = yield from rpc.call(rpc.LIST_SEQUENCES, store_pb2.ListSequencesRequest())
    return tuple(StoredSequence.from_proto(stored) for stored in answer.sequences)


def delete(name: str) -> Operation[None]:
    request = store_pb2.DeleteSequenceRequest(name=full_name(name))
    yield from rpc.call(rpc.DELETE_SEQUENCE, request)


def full_name(name: str) -> str:
    return name if name.startswith("sequences/") else f"sequences/{name}"


def _chunks(k: Planes[Any], v: Planes[Any]) -> Iterator[store_pb2.Chunk]:
    for part, planes in ((store_pb2.Chunk.PART_K, k), (store_pb2.Chunk.PART_V, v)):
        offset = 0
        for layer in planes.layers:
            data = np.ascontiguousarray(layer).reshape(-1).view(np.uint8)
            for at in range(0, len(data), _CHUNK_BYTES):
                piece = data[at : at + _CHUNK_BYTES].tobytes()
                yield store_pb2.Chunk(part=part, offset=offset, data=piece)
                offset += len(piece)
