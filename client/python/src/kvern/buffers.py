"""Caches that are made in shared memory, so that compress() copies nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kvern.arrays import numpy_result, torch_result
from kvern.dtypes import WIRE_DTYPES
from kvern.errors import invalid
from kvern.models import ModelSpec
from kvern.rpc import Operation
from kvern.session import ModelLike, Session
from kvern.slabs import Part, SlabKey
from kvern.transports import end_slab, open_slab


def new_cache(
    session: Session,
    shape: Sequence[int],
    dtype: str,
    model: ModelLike | None,
    kind: str,
) -> Operation[tuple[Any, Any]]:
    """Zeroed k and v of `shape`, numpy or torch.

    Errors: INVALID_ARGUMENT; FAILED_PRECONDITION/BROKER_MISSING over TCP.
    """
    if len(shape) not in (3, 4) or min(shape, default=0) < 1 or dtype not in WIRE_DTYPES:
        raise invalid(
            "shape",
            f"shape, dtype: got {list(shape)} and '{dtype}', want [kv_heads, tokens, head_dim] or "
            f"[layers, kv_heads, tokens, head_dim] of 1 or more, and {', '.join(WIRE_DTYPES)}",
        )
    if kind not in ("numpy", "torch"):
        raise invalid("kind", f"kind: got '{kind}', want numpy or torch")
    layers, kv_heads, tokens, head_dim = shape if len(shape) == 4 else (1, *shape)
    name = (yield from session.model(model or ModelSpec(layers, kv_heads, head_dim))).name
    key = SlabKey(name, dtype, tuple(range(layers)), kv_heads, head_dim)
    slab = session.slabs.take(key, tokens)
    try:
        yield from open_slab(session, slab)
        part = Part(slab, "source")
        raw = [part.array(plane, tokens) for plane in (0, 1)]
    finally:
        yield from end_slab(session, slab, quiet=True)
    as_kind = torch_result if kind == "torch" else numpy_result
    for plane in raw:
        plane[...] = 0
    k, v = (as_kind(plane if len(shape) == 4 else plane[0], dtype) for plane in raw)
    return k, v
