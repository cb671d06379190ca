"""One call to compress: what the caller said, and its form on the wire."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

import numpy as np

from kvern.arrays import Array, Planes, indices, side
from kvern.dtypes import WIRE_DTYPES
from kvern.errors import invalid
from kvern.models import ModelSpec
from kvern.policy import Policy
from kvern.session import ModelLike
from kvern.v1 import compression_pb2, types_pb2

VIAS = ("auto", "pool", "inline", "store")


@dataclass(frozen=True)
class Inputs:
    """What else is known of a cache; every tensor numpy or torch.

    positions: rotary positions of the tokens, ints [tokens] or [layers, kv_heads, tokens], where -1
    ends a row that holds fewer; by default 0, 1, 2, ... logical_tokens: tokens that the request has
    processed; 0: one past the last position. layer_indices: which of the model's layers k has,
    ascending; empty: all. q_window: the last queries, after RoPE,
    [layers, q_heads, window, head_dim]. attention_mass: f32 [layers, kv_heads, tokens], attention
    that each token received, summed over the queries and the group's heads. external_scores: f32
    [layers, kv_heads, tokens], higher = keep. protected: ranges (begin, end) of tokens that stay.
    """

    positions: Any = None
    logical_tokens: int = 0
    layer_indices: Sequence[int] = ()
    q_window: Any = None
    attention_mass: Any = None
    external_scores: Any = None
    protected: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True)
class Job(Generic[Array]):
    """One call. plan: nothing moves, no bytes come back."""

    k: Planes[Array]
    v: Planes[Array]
    policy: Policy
    model: ModelLike | None = None
    via: str = "auto"
    packed: bool = False
    copy: bool = False
    with_scores: bool = False
    plan: bool = False
    inputs: Inputs = field(default_factory=Inputs)

    def __post_init__(self) -> None:
        """Errors: INVALID_ARGUMENT."""
        if self.v.shape != self.k.shape or self.v.dtype != self.k.dtype:
            raise invalid(
                "v",
                f"v: got {self.v.dtype} {list(self.v.shape)}, want {self.k.dtype} "
                f"{list(self.k.shape)} as k has",
            )
        if self.via not in VIAS:
            raise invalid("via", f"via: got '{self.via}', want one of {', '.join(VIAS)}")
        layers = self.inputs.layer_indices
        if len(layers) not in (0, self.k.shape[0]):
            raise invalid(
                "layer_indices",
                f"layer_indices: got {len(layers)}, want {self.k.shape[0]}, one a layer of k",
            )

    @property
    def cache_bytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    @property
    def layer_indices(self) -> tuple[int, ...]:
        """Of the layers present; empty: all of the model's."""
        return tuple(int(layer) for layer in self.inputs.layer_indices)

    def model_or_shape(self) -> ModelLike:
        """Without a model its geometry is the cache's, and its RoPE is unknown."""
        if self.model is not None:
            return self.model
        layers, kv_heads, _, head_dim = self.k.shape
        num_layers = max(self.layer_indices) + 1 if self.layer_indices else layers
        return ModelSpec(num_layers=num_layers, kv_heads=kv_heads, head_dim=head_dim)

    def lengths(self) -> list[int]:
        """Tokens that each (layer, kv_head) holds, from positions of -1; empty: all hold all."""
        if self.inputs.positions is None:
            return []
        held = indices("positions", self.inputs.positions) >= 0
        if held.ndim < 2 or bool(held.all()):
            return []
        return [int(count) for count in np.count_nonzero(held, axis=-1).reshape(-1)]


def to_proto(job: Job[Any], model: str) -> compression_pb2.CompressCacheRequest:
    """Without source and placement, which the transport adds. Errors: INVALID_ARGUMENT."""
    policy = job.policy.to_proto(job.cache_bytes)
    if policy == types_pb2.Policy():
        policy.preset = "balanced"  # a paged request that names nothing would get evict50
    sequence = compression_pb2.SequenceRequest(
        sequence_id=f"kvern-py-{uuid.uuid4().hex}",
        num_logical_tokens=job.inputs.logical_tokens,
    )
    fill_inputs(sequence, job.inputs, job.k.has_layers_axis)
    request = compression_pb2.CompressCacheRequest(
        model=model, policy=policy, sequences=[sequence], validate_only=job.plan
    )
    request.response_mask.paths.extend(["kept", "positions"])
    request.response_mask.paths.extend(["scores"] if job.with_scores else [])
    request.response_mask.paths.extend([] if job.plan else ["k", "v", "packed"])
    return request


def fill_inputs(
    sequence: compression_pb2.SequenceRequest, inputs: Inputs, has_layers_axis: bool
) -> None:
    """Positions, protected ranges and side tensors. Errors: INVALID_ARGUMENT."""
    for begin, end in inputs.protected:
        sequence.protected.add(begin=begin, end=end)
    if inputs.positions is not None:
        sequence.positions.CopyFrom(positions(inputs.positions))
    for name in ("q_window", "attention_mass", "external_scores"):
        given = getattr(inputs, name)
        if given is not None:
            getattr(sequence.side, name).CopyFrom(_side(name, given, has_layers_axis))


def positions(given: Any) -> types_pb2.Positions:
    """[tokens], or one row for each (layer, kv_head)."""
    values = indices("positions", given)
    return types_pb2.Positions(values=values.reshape(-1).tolist(), per_head=values.ndim > 1)


def tensor(planes: Planes[Any]) -> types_pb2.Tensor:
    return types_pb2.Tensor(
        dtype=WIRE_DTYPES[planes.dtype], shape=planes.shape, data=planes.tobytes()
    )


def _side(name: str, given: Any, has_layers_axis: bool) -> types_pb2.Tensor:
    raw, dtype = side(name, given)
    shape = raw.shape if has_layers_axis else (1, *raw.shape)
    axes = "[layers, q_heads, window, head_dim]"
    if name != "q_window":
        axes = "[layers, kv_heads, tokens]"
    if len(shape) != axes.count(",") + 1:
        raise invalid(
            name,
            f"{name}: got shape {list(raw.shape)}, want {axes}, without layers where k has none",
        )
    return types_pb2.Tensor(dtype=WIRE_DTYPES[dtype], shape=shape, data=raw.tobytes())
