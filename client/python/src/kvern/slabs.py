"""Pooled memory of compress(): slabs that outlive a call and are used again, never shared by two.

A slab is one sealed memfd and one registered pool. Each layer's keys, and values, lie in it as
[kv_heads, 2 x half_tokens, head_dim]: blocks of 64 tokens, the first half for the source, the other
for the result. A dense cache is a paged one whose head stride spans all blocks, so that neither
side's arrays need a gather.
"""

from __future__ import annotations

import threading
import uuid
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.arrays import Raw
from kvern.broker import BrokerConnection
from kvern.dtypes import RAW_DTYPES, WIRE_DTYPES
from kvern.memory import SealedMemory
from kvern.v1 import pool_pb2, types_pb2

BLOCK_TOKENS = 64


@dataclass(frozen=True)
class SlabKey:
    """What a pool is registered for. layers: their indices in the model."""

    model: str
    dtype: str
    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int

    def token_bytes(self) -> int:
        return self.head_dim * RAW_DTYPES[self.dtype].itemsize

    def bytes_for(self, half_blocks: int) -> int:
        tokens = 2 * half_blocks * BLOCK_TOKENS
        return 2 * len(self.layers) * self.kv_heads * tokens * self.token_bytes()


class Part:
    """The use of one half of a slab: over when the last array over it is gone."""

    def __init__(self, slab: Slab, half: str) -> None:
        self.slab = slab
        self.half = half
        slab.busy[half] = True
        # Runs wherever a reference dies, so it takes no lock: one assignment.
        self._over = weakref.finalize(self, slab.busy.__setitem__, half, False)

    def release(self) -> None:
        """No array over it is left with anybody."""
        self._over()

    def array(self, plane: int, tokens: int) -> Raw:
        """Keys (plane 0) or values (1) of the first `tokens`: [layers, kv_heads, tokens, head_dim].

        The array keeps the part, and it the mapping, alive.
        """
        return np.asarray(_Window(self, plane, tokens))


class _Window:
    """numpy's array over an address; the array's base is this object."""

    def __init__(self, part: Part, plane: int, tokens: int) -> None:
        slab, self.part = part.slab, part
        key, item = slab.key, RAW_DTYPES[slab.key.dtype]
        first = slab.half_tokens if part.half == "result" else 0
        offset = plane * slab.plane_bytes + first * key.token_bytes()
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": item.str,
            "shape": (len(key.layers), key.kv_heads, tokens, key.head_dim),
            "strides": (2 * slab.plane_bytes, slab.head_bytes, key.token_bytes(), item.itemsize),
            "data": (slab.memory.address + offset, False),
        }


class Slab:
    """See the head of this file. `open` makes it usable, `close` ends its pool on the server."""

    def __init__(self, key: SlabKey, half_blocks: int) -> None:
        self.key = key
        self.half_blocks = half_blocks
        self.half_tokens = half_blocks * BLOCK_TOKENS
        self.head_bytes = 2 * self.half_tokens * key.token_bytes()
        self.plane_bytes = key.kv_heads * self.head_bytes
        self.size_bytes = key.bytes_for(half_blocks)
        self.sequence_id = f"kvern-py-{uuid.uuid4().hex}"
        self.pool = ""
        self.epoch = 0
        self.in_call = False
        self.busy = {"source": False, "result": False}
        self.memory: SealedMemory
        self._broker: BrokerConnection | None = None
        self._closed = False

    def open(self, paths: list[str]) -> bytes:
        """Makes and attaches the memory. Blocks; answers the attachment id."""
        self.memory = SealedMemory(self.size_bytes)
        broker = BrokerConnection(paths)
        try:
            attachment_id = broker.attach(self.memory.fileno())
        except BaseException:
            broker.close()
            raise
        self.memory.close_file()
        self._broker = broker
        if self._closed:  # the call was cancelled meanwhile
            broker.close()
        return attachment_id

    def close(self) -> None:
        """The pool ends with its broker connection; arrays over the memory stay good."""
        self._closed = True
        if self._broker is not None:
            self._broker.close()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def idle(self) -> bool:
        return not (self.in_call or self.busy["source"] or self.busy["result"])

    def describe(self, attachment_id: bytes, engine: pool_pb2.Engine) -> pool_pb2.Pool:
        item = RAW_DTYPES[self.key.dtype].itemsize

        def view(plane: int) -> pool_pb2.KvView:
            return pool_pb2.KvView(
                base_offset=plane * self.plane_bytes,
                block_stride=BLOCK_TOKENS * self.key.token_bytes(),
                head_stride=self.head_bytes,
                token_stride=self.key.token_bytes(),
                dim_stride=item,
            )

        return pool_pb2.Pool(
            model=self.key.model,
            dtype=WIRE_DTYPES[self.key.dtype],
            block_tokens=BLOCK_TOKENS,
            num_blocks=2 * self.half_blocks,
            regions=[pool_pb2.Region(attachment_id=attachment_id)],
            layers=[
                pool_pb2.PoolLayer(layer=layer, k=view(2 * slot), v=view(2 * slot + 1))
                for slot, layer in enumerate(self.key.layers)
            ],
            max_shape_class=types_pb2.SHAPE_CLASS_S4,
            engine=engine,
        )


class SlabCache:
    """The slabs of one client. Thread-safe."""

    def __init__(self, max_slabs: int, max_bytes: int) -> None:
        self._max_slabs = max_slabs
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._slabs: list[Slab] = []  # least recently used first

    def take(self, key: SlabKey, tokens: int) -> Slab:
        """An idle slab, or a new one whose pool is still to be registered (`pool` is empty)."""
        want = max(1, -(-tokens // BLOCK_TOKENS))
        with self._lock:
            for slab in self._slabs:
                fits = want <= slab.half_blocks <= 4 * want
                if slab.idle and slab.key == key and fits:
                    slab.in_call = True
                    self._slabs.remove(slab)
                    self._slabs.append(slab)
                    return slab
            # Lengths that grow token by token find the same slab for a while.
            slab = Slab(key, 1 << (want - 1).bit_length())
            slab.in_call = True
            self._slabs.append(slab)
            return slab

    def take_source(self, key: SlabKey, k: Raw, v: Raw) -> Slab | None:
        """The slab in whose source half k and v lie already, if its result half is free."""
        with self._lock:
            for slab in self._slabs:
                if slab.closed or slab.in_call or slab.busy["result"] or not slab.busy["source"]:
                    continue
                if slab.key == key and lies_at(slab, 0, k) and lies_at(slab, 1, v):
                    slab.in_call = True
                    return slab
        return None

    def may_share(self, slab: Slab) -> bool:
        """Whether one more slab may stay out of use while somebody reads its result."""
        with self._lock:
            busy = [other for other in self._slabs if other is slab or not other.idle]
            total = sum(other.size_bytes for other in busy)
            return len(busy) < max(2, self._max_slabs) and total <= self._max_bytes

    def end_call(self, slab: Slab) -> list[Slab]:
        """Gives a slab back; answers those that are closed for it, to keep within the limits."""
        with self._lock:
            slab.in_call = False
            dropped = []
            total = sum(other.size_bytes for other in self._slabs)
            for other in list(self._slabs):
                surplus = len(self._slabs) > self._max_slabs or total > self._max_bytes
                if other.closed or (surplus and other.idle):
                    self._slabs.remove(other)
                    total -= other.size_bytes
                    dropped.append(other)
        for other in dropped:
            other.close()
        return dropped

    def drop_idle(self, model: str) -> list[Slab]:
        """Ends the pools of a model that nobody uses."""
        with self._lock:
            gone = [slab for slab in self._slabs if slab.idle and slab.key.model == model]
            self._slabs = [slab for slab in self._slabs if slab not in gone]
        for slab in gone:
            slab.close()
        return gone

    def clear(self) -> list[Slab]:
        """Ends all pools."""
        with self._lock:
            slabs, self._slabs = self._slabs, []
        for slab in slabs:
            slab.close()
        return slabs


def lies_at(slab: Slab, plane: int, raw: Raw) -> bool:
    """Whether raw [layers, kv_heads, tokens, head_dim] is what Part.array gives of the source."""
    if raw.ndim != 4 or raw.shape[2] > slab.half_tokens:
        return False
    at: NDArray[Any] = raw
    address = at.__array_interface__["data"][0]
    item = RAW_DTYPES[slab.key.dtype].itemsize
    strides = (2 * slab.plane_bytes, slab.head_bytes, slab.key.token_bytes(), item)
    axes = zip(at.shape, at.strides, strides, strict=True)
    same_axes = all(extent == 1 or got == want for extent, got, want in axes)
    return address == slab.memory.address + plane * slab.plane_bytes and same_axes
