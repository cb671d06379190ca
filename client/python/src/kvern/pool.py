"""Paged memory that a serving engine owns: registered once, then named by block ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from kvern import rpc
from kvern.arrays import side
from kvern.broker import BrokerConnection, broker_paths
from kvern.dtypes import RAW_DTYPES, WIRE_DTYPES
from kvern.errors import KvernError, invalid
from kvern.memory import SealedMemory
from kvern.results import SHAPE_CLASSES
from kvern.rpc import Operation
from kvern.session import ModelLike, Session
from kvern.v1 import pool_pb2

_WIRE_CLASSES = {name: wire for wire, name in SHAPE_CLASSES.items()}


@dataclass(frozen=True)
class View:
    """Where the keys or values of one layer lie, in bytes of the memory.

    Element (block, head, token, dim) is at base_offset + block * block_stride + head * head_stride
    + token * token_stride + dim * dim_stride; token counts inside the block.
    """

    base_offset: int
    block_stride: int
    head_stride: int
    token_stride: int
    dim_stride: int


@dataclass(frozen=True)
class PoolLayer:
    """One layer; layer is its index in the model."""

    layer: int
    k: View
    v: View

    @staticmethod
    def of(memory: SealedMemory, layer: int, k: Any, v: Any, dtype: str | None = None) -> PoolLayer:
        """Of numpy arrays or torch tensors over the memory, with axes in this order whatever their
        strides: [num_blocks, kv_heads, block_tokens, head_dim]. Errors: INVALID_ARGUMENT."""
        return PoolLayer(layer, _view("k", memory, k, dtype), _view("v", memory, v, dtype))


@dataclass(frozen=True)
class PoolSpec:
    """block_tokens: 1..256. max_shape_class: the highest that the engine can digest. read_only: the
    server never writes, so only placements ``indices_only`` and ``to_store`` are served."""

    dtype: str
    block_tokens: int
    num_blocks: int
    layers: Sequence[PoolLayer]
    max_shape_class: str = "S2"
    read_only: bool = False


class Pool:
    """A registered pool. It lives as long as its connection to the server: until close()."""

    def __init__(self, name: str, spec: PoolSpec, broker: BrokerConnection) -> None:
        self.name = name
        self.spec = spec
        self._broker = broker

    def close(self) -> None:
        """The server lets go of the memory as soon as running calls have ended."""
        self._broker.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def register(
    session: Session, memory: SealedMemory, spec: PoolSpec, model: ModelLike
) -> Operation[Pool]:
    """Errors: INVALID_ARGUMENT (field path); FAILED_PRECONDITION/BROKER_MISSING over TCP."""
    if spec.dtype not in WIRE_DTYPES:
        raise invalid("dtype", f"dtype: got '{spec.dtype}', want {', '.join(WIRE_DTYPES)}")
    if spec.max_shape_class not in _WIRE_CLASSES:
        known = ", ".join(sorted(_WIRE_CLASSES))
        raise invalid("max_shape_class", f"got '{spec.max_shape_class}', want one of {known}")
    info = yield from session.info()
    name = (yield from session.model(model)).name
    paths = broker_paths(session.address, info.broker_address)
    broker = yield from rpc.work(lambda: BrokerConnection(paths))
    try:
        attachment_id = yield from rpc.work(lambda: broker.attach(memory.fileno()))
        request = pool_pb2.RegisterPoolRequest(pool=_to_proto(session, spec, name, attachment_id))
        answer = yield from rpc.call(rpc.REGISTER_POOL, request)
    except BaseException:
        broker.close()
        raise
    return Pool(answer.pool.name, spec, broker)


def names() -> Operation[tuple[str, ...]]:
    answer = yield from rpc.call(rpc.LIST_POOLS, pool_pb2.ListPoolsRequest())
    return tuple(pool.name for pool in answer.pools)


def unregister(pool: Pool) -> Operation[None]:
    """Ends the pool before it returns."""
    try:
        yield from rpc.call(rpc.UNREGISTER_POOL, pool_pb2.UnregisterPoolRequest(name=pool.name))
    finally:
        pool.close()


def _to_proto(session: Session, spec: PoolSpec, model: str, attachment_id: bytes) -> pool_pb2.Pool:
    def wire(view: View) -> pool_pb2.KvView:
        return pool_pb2.KvView(
            base_offset=view.base_offset,
            block_stride=view.block_stride,
            head_stride=view.head_stride,
            token_stride=view.token_stride,
            dim_stride=view.dim_stride,
        )

    return pool_pb2.Pool(
        model=model,
        dtype=WIRE_DTYPES[spec.dtype],
        block_tokens=spec.block_tokens,
        num_blocks=spec.num_blocks,
        regions=[pool_pb2.Region(attachment_id=attachment_id)],
        layers=[
            pool_pb2.PoolLayer(layer=at.layer, k=wire(at.k), v=wire(at.v)) for at in spec.layers
        ],
        max_shape_class=_WIRE_CLASSES[spec.max_shape_class],
        engine=session.engine,
        read_only=spec.read_only,
    )


def _view(name: str, memory: SealedMemory, given: Any, dtype: str | None) -> View:
    raw, got = side(name, given, dtype)
    if raw.ndim != 4:
        raise invalid(
            name,
            f"{name}: got shape {list(raw.shape)}, want [num_blocks, kv_heads, block_tokens, "
            "head_dim]",
        )
    offset = int(raw.__array_interface__["data"][0]) - memory.address
    if not 0 <= offset <= memory.size_bytes - RAW_DTYPES[got].itemsize:
        raise KvernError("INVALID_ARGUMENT", f"{name}: lies outside of the memory", field=name)
    return View(offset, *raw.strides)
