"""A text goes on while every layer and head sees its own tokens of one cache.

The cache stays as long as it was, and what a policy dropped is hidden by attention masks: exactly
what attention over the smaller cache computes, for any counts, many policies in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

from kvern.calibrate.tap import Rotation, attention_layers, tapped


@dataclass(frozen=True, eq=False)
class Sight:
    """A cache as one policy leaves it. k, v: [layers, kv_heads, tokens, head_dim], decoded; keep:
    bool [layers, kv_heads, tokens], tokens that are still there."""

    k: torch.Tensor = field(repr=False)
    v: torch.Tensor = field(repr=False)
    keep: torch.Tensor = field(repr=False)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a model computed of a text: its cache, and per layer what was around RoPE."""

    sight: Sight
    rotations: list[Rotation] = field(repr=False)


def prefill(model: Any, ids: Sequence[int], dtype: torch.dtype | None = None) -> Prompt:
    """dtype: to which the cache is rounded, as an engine would hold it."""
    rotations: dict[int, Rotation] = {}
    cache = DynamicCache(config=model.config)
    with torch.no_grad(), tapped(model, rotations.__setitem__):
        model.base_model(
            torch.tensor([list(ids)], device=model.device), past_key_values=cache, use_cache=True
        )
    k = torch.stack([_held(layer.keys) for layer in cache.layers])
    v = torch.stack([_held(layer.values) for layer in cache.layers])
    if dtype is not None:
        k, v = k.to(dtype).to(k.dtype), v.to(dtype).to(v.dtype)
    keep = torch.ones(k.shape[:3], dtype=torch.bool)
    return Prompt(Sight(k, v, keep), [rotations[layer] for layer in range(len(cache.layers))])


def resume(model: Any, sights: Sequence[Sight], ids: Sequence[int]) -> torch.Tensor:
    """Logits of the given next tokens for every sight, f32 [sights, tokens, vocabulary]."""
    cache = DynamicCache(config=model.config)
    for layer in range(sights[0].k.shape[0]):
        cache.update(
            torch.stack([sight.k[layer] for sight in sights]),
            torch.stack([sight.v[layer] for sight in sights]),
            layer,
        )
    batch = torch.tensor([list(ids)], device=model.device).expand(len(sights), -1)
    with torch.no_grad(), _hidden(model, sights, len(ids)):
        answer = model(batch, past_key_values=cache, use_cache=True)
    logits: torch.Tensor = answer.logits.float()
    return logits


@contextmanager
def _hidden(model: Any, sights: Sequence[Sight], count: int) -> Iterator[None]:
    """Attention layers get masks [sights, q_heads, count, tokens + count] of their own."""
    layers = attention_layers(model)
    q_heads = model.config.get_text_config(decoder=True).num_attention_heads
    causal = torch.ones(count, count, dtype=torch.bool).tril()

    def enter(module: Any, args: Any, words: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        keep = torch.stack([sight.keep[module.layer_idx] for sight in sights])
        group = q_heads // keep.shape[1]
        past = keep.repeat_interleave(group, dim=1)[:, :, None].expand(-1, -1, count, -1)
        seen = torch.cat([past, causal.expand(*past.shape[:2], -1, -1)], dim=-1)
        mask = torch.zeros(seen.shape, dtype=model.dtype).masked_fill(
            ~seen, torch.finfo(model.dtype).min
        )
        return args, {**words, "attention_mask": mask.to(model.device)}

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        yield


def _held(plane: Any) -> torch.Tensor:
    assert isinstance(plane, torch.Tensor)
    return plane[0]
