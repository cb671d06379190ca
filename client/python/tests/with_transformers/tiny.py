"""Small models with random weights, one per architecture, and what tests do with them."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

torch.set_num_threads(1)

_SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "sliding_window": None,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@functools.cache
def model(kind: str = "llama", seed: int = 0) -> Any:
    return make(kind, seed)


def make(kind: str, seed: int = 0, **words: Any) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**_SHAPE, **words})
    build: Any = AutoModelForCausalLM.from_config
    made = build(config, attn_implementation="sdpa").eval()
    # Fresh weights are so small that all keys look alike.
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim == 2:
                weight.mul_(4)
    return made


def text(tokens: int, seed: int = 1) -> torch.Tensor:
    """Token ids [1, tokens], all different: equal ones would tie in key norms."""
    order = torch.randperm(1021, generator=torch.Generator().manual_seed(seed))
    return 3 + order[None, :tokens]


def fill(of: Any, ids: torch.Tensor, cache: DynamicCache | None = None) -> DynamicCache:
    """The cache of a text."""
    filled = DynamicCache(config=of.config) if cache is None else cache
    logits(of, ids, filled)
    return filled


def logits(of: Any, ids: torch.Tensor, cache: DynamicCache, **words: Any) -> torch.Tensor:
    """[tokens, vocabulary] of the given tokens, which go into the cache."""
    with torch.no_grad():
        answer = of(ids, past_key_values=cache, use_cache=True, **words)
    return answer.logits[0]  # type: ignore[no-any-return]


def greedy(of: Any, cache: DynamicCache, first: int, steps: int) -> tuple[list[int], torch.Tensor]:
    """Tokens, and the logits that chose them [steps, vocabulary]."""
    tokens, rows = [first], []
    for _ in range(steps):
        rows.append(logits(of, torch.tensor([tokens[-1:]]), cache)[-1])
        tokens.append(int(rows[-1].argmax()))
    return tokens[1:], torch.stack(rows)


def keys(cache: DynamicCache, layer: int = 0) -> torch.Tensor:
    """[1, kv_heads, tokens, head_dim]."""
    return _held(cache.layers[layer].keys)


def values(cache: DynamicCache, layer: int = 0) -> torch.Tensor:
    return _held(cache.layers[layer].values)


def _held(plane: Any) -> torch.Tensor:
    assert isinstance(plane, torch.Tensor)
    return plane
