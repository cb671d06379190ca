"""From a DynamicCache to a smaller one that generation goes on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from kvern import Client, CompressResult, Inputs, KvernError, Plan, Policy
from kvern.transformers.logical_layer import LogicalLayer, bytes_of, tensors, tokens_of
from kvern.transformers.model_spec import model_spec
from kvern.transformers.refusal import unsupported

KEEP_LOGICAL = "keep_logical"
RENUMBER = "renumber"
_WIRE_POSITIONS = {KEEP_LOGICAL: "keep", RENUMBER: "renumber"}


@dataclass(frozen=True, eq=False)
class Compaction:
    """A smaller cache, and how to go on with it.

    cache: give it to the model or to generate(). next_position: of the next token. bytes_before,
    bytes_after: of the tensors in this process; codecs change the values, and do not shrink these.
    result: what the server said, kept_indices and kept_counts among it; k and v are the cache's.
    """

    cache: DynamicCache = field(repr=False)
    next_position: int
    bytes_before: int
    bytes_after: int
    result: Plan

    def position_ids(self, count: int = 1) -> torch.Tensor:
        """Of the next tokens, i64 [1, count]; the model finds the same when none are given."""
        return torch.arange(self.next_position, self.next_position + count)[None]


def compress(
    cache: DynamicCache,
    model: Any,
    client: Client,
    policy: Policy | str | None = None,
    *,
    positions: str = KEEP_LOGICAL,
    inputs: Inputs | None = None,
) -> Compaction:
    """A compacted copy of a cache; the given one stays as it is.

    policy: by default ``evict50``. It must keep as many tokens in every layer and head, because
    transformers has one attention mask for all. positions: ``keep_logical`` leaves keys where they
    stand in the text, and the cache counts tokens of the text: go on as if nothing was dropped.
    ``renumber`` rotates the kept keys to 0..n-1, and the cache is one of an ordinary text of n
    tokens. inputs: side tensors for scorers (q_window, attention_mass, ...).

    Memory of a GPU travels through the host. Errors: UNIMPLEMENTED for batches and for models and
    layers that are not supported; FAILED_PRECONDITION/SHAPE_CLASS for unequal counts; those of
    Client.compress.
    """
    check_positions(positions)
    keys, values = planes(cache)
    spec = model_spec(model)
    # A copy, since views would keep the pool of shared memory from other calls.
    result: CompressResult[torch.Tensor] = client.compress(
        keys,
        values,
        placed(policy, positions),
        model=spec,
        inputs=_inputs(cache, inputs or Inputs()),
        copy=True,
    )
    check_counts(result)
    made = _cache(cache, result, positions)
    return Compaction(
        cache=made,
        next_position=made.get_seq_length(),
        bytes_before=cache_bytes(cache),
        bytes_after=cache_bytes(made),
        result=Plan(**{part.name: getattr(result, part.name) for part in fields(Plan)}),
    )


def planes(cache: DynamicCache) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Keys and values on the host, [kv_heads, tokens, head_dim] per layer. Errors: UNIMPLEMENTED,
    INVALID_ARGUMENT for an empty cache."""
    if not isinstance(cache, DynamicCache):
        raise unsupported("cache", type(cache).__name__, "DynamicCache")
    keys, values = [], []
    for index, layer in enumerate(cache.layers):
        name = f"cache.layers[{index}]"
        if type(layer) not in (DynamicLayer, LogicalLayer):
            raise unsupported(name, type(layer).__name__, "DynamicLayer (full attention)")
        if not tokens_of(layer):
            raise KvernError("INVALID_ARGUMENT", f"{name}: got no tokens, want 1 or more")
        k, v = tensors(layer)
        if k.shape[0] != 1:
            raise unsupported(name, f"a batch of {k.shape[0]}", "one sequence")
        if tokens_of(layer) != tokens_of(cache.layers[0]):
            raise unsupported(name, f"{tokens_of(layer)} tokens", "as many in every layer")
        keys.append(k[0].detach().cpu())
        values.append(v[0].detach().cpu())
    if not keys:
        raise KvernError("INVALID_ARGUMENT", "cache: got no layers, want a cache that was filled")
    return keys, values


def cache_bytes(cache: DynamicCache) -> int:
    """Of all tensors that a cache holds."""
    return sum(bytes_of(layer) for layer in cache.layers)


def check_positions(positions: str) -> None:
    if positions not in _WIRE_POSITIONS:
        known = " or ".join(_WIRE_POSITIONS)
        raise KvernError(
            "INVALID_ARGUMENT",
            f"positions: got '{positions}', want {known}",
            field="positions",
        )


def check_counts(result: CompressResult[torch.Tensor]) -> None:
    counts = result.kept_counts
    if counts.min() != counts.max():
        raise KvernError(
            "FAILED_PRECONDITION",
            f"policy: got {counts.min()} to {counts.max()} tokens in layers and heads, want as "
            "many in all: transformers has one attention mask for all layers",
            reason="SHAPE_CLASS",
            field="policy",
        )


def placed(policy: Policy | str | None, positions: str) -> Policy:
    given = Policy("evict50") if policy is None else policy
    given = Policy(given) if isinstance(given, str) else given
    wire = _WIRE_POSITIONS[positions]
    if given.positions not in ("", wire):
        raise KvernError(
            "INVALID_ARGUMENT",
            f"policy.positions: got '{given.positions}', want '{wire}' as positions says",
            field="policy.positions",
        )
    return replace(given, positions=wire)


def _inputs(cache: DynamicCache, inputs: Inputs) -> Inputs:
    """With the positions of a cache that was compacted before."""
    held = layer_positions(cache.layers)
    if held is None:
        return inputs
    return replace(inputs, positions=held, logical_tokens=cache.get_seq_length())


def layer_positions(layers: Sequence[Any]) -> torch.Tensor | None:
    """i32 [layers, kv_heads, tokens], None where tokens stand at 0 to tokens - 1."""
    rows = [layer.positions() if isinstance(layer, LogicalLayer) else None for layer in layers]
    known = [row for row in rows if row is not None]
    return torch.stack(known) if len(known) == len(rows) else None


def _cache(
    cache: DynamicCache, result: CompressResult[torch.Tensor], positions: str
) -> DynamicCache:
    layer_class = LogicalLayer if positions == KEEP_LOGICAL else DynamicLayer
    made = DynamicCache()
    made.layer_class_to_replicate = None
    made.layers = [layer_class() for _ in cache.layers]
    for index, (source, layer) in enumerate(zip(cache.layers, made.layers, strict=True)):
        fill(source, layer, result, index)
    return made


def fill(source: Any, layer: Any, result: CompressResult[torch.Tensor], index: int) -> None:
    """Gives `layer` what the result kept of `source`, which may be the same layer."""
    keys, values = tensors(source)
    if result.outcome != "noop":
        device = keys.device
        keys, values = result.k[index][None].to(device), result.v[index][None].to(device)
    if not isinstance(layer, LogicalLayer):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        return
    held = torch.from_numpy(result.positions[index].copy())
    layer.hold(keys, values, held, source.get_seq_length())
