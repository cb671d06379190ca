"""How much the model's answers suffer when one layer alone loses tokens.

The budgeter `sensitivity` gives layers budgets by the square root of these numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from kvern.calibrate.artifact import Floats, Moments
from kvern.calibrate.masked import Prompt, Sight, prefill, resume
from kvern.calibrate.tap import attention_layers

KEEP_RATIOS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
FUTURE = 24  # tokens of text after the context over which answers are compared
_SINK, _RECENT, _RECENT_SHARE = 4, 32, 0.5
_ROTATED_AHEAD = 512
_BATCH = 8


def layer_sensitivity(
    model: Any,
    moments: Moments,
    windows: Sequence[Sequence[int]],
    progress: Callable[[], None] = lambda: None,
) -> Floats:
    """f32 [num_layers]: KL(full || one layer evicted) per token, in nat, averaged over KEEP_RATIOS
    and windows. Tokens of the layer are kept by expected attention with the given moments.

    windows: token ids, a context and FUTURE tokens after it. progress: called once per forward.
    """
    total = np.zeros(len(moments.mean))
    for ids in windows:
        prompt = prefill(model, ids[:-FUTURE])
        scores = expected_attention(model, prompt, moments)
        total += _one_window(model, prompt.sight, scores, ids[-FUTURE:], progress)
    return (total / len(windows)).astype(np.float32)


def _one_window(
    model: Any, full: Sight, scores: torch.Tensor, ids: Sequence[int], progress: Callable[[], None]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    layers, _, tokens = scores.shape
    reference = torch.log_softmax(resume(model, [full], ids)[0], dim=-1)
    cells = [(layer, ratio) for layer in range(layers) for ratio in KEEP_RATIOS]
    total = np.zeros(layers)
    for at in range(0, len(cells), _BATCH):
        batch = cells[at : at + _BATCH]
        sights = []
        for layer, ratio in batch:
            keep = full.keep.clone()
            keep[layer] = kept(scores[layer], int(ratio * tokens))
            sights.append(Sight(full.k, full.v, keep))
        for (layer, _), logits in zip(batch, resume(model, sights, ids), strict=True):
            total[layer] += divergence(reference, torch.log_softmax(logits, dim=-1)).mean().item()
        progress()
    return total / len(KEEP_RATIOS)


def divergence(full: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """KL(full || other) per token of log-probabilities [tokens, vocabulary], in nat."""
    return (full.exp() * (full - other)).sum(-1)


def kept(scores: torch.Tensor, count: int) -> torch.Tensor:
    """bool [kv_heads, tokens]: first and last tokens, and the best of the others."""
    tokens = scores.shape[-1]
    count = min(max(count, _SINK), tokens)
    recent = min(max(_RECENT, int(_RECENT_SHARE * count)), count - _SINK)
    ranked = scores.clone()
    ranked[:, :_SINK] = torch.inf
    ranked[:, tokens - recent :] = torch.inf
    best = ranked.topk(count, dim=-1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)


def expected_attention(model: Any, prompt: Prompt, moments: Moments) -> torch.Tensor:
    """Softmax of the expected logit times the value's norm, f32 [layers, kv_heads, tokens]; the
    queries are those of the next tokens, of which the moments are known before RoPE."""
    rows = []
    for layer, attention in enumerate(attention_layers(model)):
        k, v = prompt.sight.k[layer].float(), prompt.sight.v[layer].float()
        turn = _mean_rotation(model, prompt, layer)
        mean = torch.from_numpy(moments.mean[layer]) @ turn
        cov = turn.T @ torch.from_numpy(moments.cov[layer]) @ turn
        scale = float(getattr(attention, "scaling", k.shape[-1] ** -0.5))
        keys = k.repeat_interleave(mean.shape[0] // k.shape[0], dim=0)
        logits = scale * (keys @ mean[..., None])[..., 0]
        logits = logits + 0.5 * scale**2 * ((keys @ cov) * keys).sum(-1)
        logits[:, :_SINK] = -torch.inf
        mass = torch.softmax(logits, dim=-1).unflatten(0, (k.shape[0], -1)).mean(1)
        rows.append(mass * v.norm(dim=-1))
    return torch.stack(rows)


def _mean_rotation(model: Any, prompt: Prompt, layer: int) -> torch.Tensor:
    """[head_dim, head_dim], on the right of a row: RoPE averaged over the next positions."""
    rotation = prompt.rotations[layer]
    head_dim, first = rotation.queries.shape[-1], rotation.queries.shape[2]
    positions = torch.arange(first, first + _ROTATED_AHEAD)[None]
    like = torch.zeros(1, 1, dtype=torch.float32)
    cos, sin = model.base_model.rotary_emb(like, positions)
    units = torch.eye(head_dim)[None, :, None].expand(1, -1, _ROTATED_AHEAD, -1)
    return rotation.rotate(units, units[:, :1], cos, sin)[0][0].mean(1)
