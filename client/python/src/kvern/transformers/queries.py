"""Queries of a prompt, computed from what an attention layer was given.

Caches hold no queries, so scorers that judge by them need this: `snapkv` the last ones after RoPE,
`expected_attention` mean and covariance of all before RoPE.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import save

from kvern.transformers.refusal import unsupported

# By config.model_type; of each, a test compares kept sets with those of kvpress.
QUERY_MODELS = ("llama", "mistral", "phi3", "qwen2", "qwen3")


def before_rope(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    """[batch, q_heads, tokens, head_dim]. Errors: UNIMPLEMENTED."""
    config = module.config
    if config.model_type not in QUERY_MODELS:
        raise unsupported("scorer", f"queries of '{config.model_type}'", ", ".join(QUERY_MODELS))
    q_heads = config.num_attention_heads
    with torch.no_grad():
        if config.model_type == "phi3":
            flat = module.qkv_proj(hidden_states)[..., : q_heads * module.head_dim]
        else:
            flat = module.q_proj(hidden_states)
        heads = flat.unflatten(-1, (q_heads, module.head_dim))
        if config.model_type == "qwen3":
            heads = module.q_norm(heads)
    return heads.transpose(1, 2)


def window(
    module: Any,
    hidden_states: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    tokens: int,
) -> torch.Tensor:
    """The last queries as attention uses them, [q_heads, tokens, head_dim], of one sequence."""
    queries = before_rope(module, hidden_states[:, -tokens:])[0]
    cos, sin = (part[0, -tokens:] for part in position_embeddings)
    rotary_dim = cos.shape[-1]
    rotated, rest = queries[..., :rotary_dim], queries[..., rotary_dim:]
    low, high = rotated.chunk(2, dim=-1)
    turned = torch.cat([-high, low], dim=-1)
    return torch.cat([rotated * cos + turned * sin, rest], dim=-1)


def moments(module: Any, hidden_states: torch.Tensor, sink: int) -> bytes:
    """An artifact `kvern-query-moments/1` of one layer and one sequence, without the queries of the
    first `sink` tokens: Expected Attention takes them for outliers."""
    queries = before_rope(module, hidden_states[:, sink:])[0].float()
    mean = queries.mean(dim=1, keepdim=True)
    centred = queries - mean
    covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
    tensors = {"q_mean": mean[None, :, 0].contiguous(), "q_cov": covariance[None].contiguous()}
    return save(tensors, metadata={"format": "kvern-query-moments/1"})
