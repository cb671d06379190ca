"""Queries and keys at the one place where every model has them ready: as they enter RoPE.

Attention layers of transformers call `apply_rotary_pos_emb` of their own module, after biases,
splits and norms. While a tap is open that function reports its arguments, so no architecture needs
a recipe of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from kvern.transformers.refusal import unsupported

_ROTATE = "apply_rotary_pos_emb"
Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Rotation:
    """One layer's queries and keys around RoPE, [batch, heads, tokens, head_dim], and the model's
    own function between them."""

    queries: torch.Tensor
    keys: torch.Tensor
    rotated_queries: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor
    rotate: Rotate = field(repr=False)

    def layout(self) -> tuple[str, int]:
        """``half`` or ``interleaved``, and the rotated dims; asked of the function itself."""
        unit = torch.zeros_like(self.queries[:1, :1, :1])
        unit[..., 0] = 1
        cos = torch.zeros_like(self.cos[:1, :1])
        turned = self.rotate(unit, unit, cos, torch.ones_like(cos))[0]
        partner = int(turned.abs().flatten().argmax())
        if partner == 1:
            return "interleaved", self.cos.shape[-1]
        return "half", 2 * partner


def attention_layers(model: Any) -> list[Any]:
    """Attention modules in the order of layers. Errors: UNIMPLEMENTED."""
    found = {
        module.layer_idx: module
        for module in model.modules()
        if hasattr(module, "layer_idx")
        and hasattr(sys.modules[type(module).__module__], _ROTATE)
        and any(name in dict(module.named_children()) for name in ("q_proj", "qkv_proj"))
    }
    layers: int = model.config.get_text_config(decoder=True).num_hidden_layers
    if sorted(found) != list(range(layers)):
        raise unsupported(
            "model",
            f"{type(model).__name__} with RoPE in layers {sorted(found)}",
            f"a causal language model with RoPE in all of its {layers} layers",
        )
    return [found[index] for index in range(layers)]


@contextmanager
def tapped(model: Any, receive: Callable[[int, Rotation], None]) -> Iterator[None]:
    """Forward passes in here call receive(layer, rotation) for every layer.

    Errors: UNIMPLEMENTED for a model that rotates elsewhere.
    """
    current: list[int] = []
    layers = attention_layers(model)

    def enter(module: Any, args: Any) -> None:
        del args
        current[:] = [module.layer_idx]

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(enter).remove)
        for name in sorted({type(layer).__module__ for layer in layers}):
            _replace(stack, sys.modules[name], current, receive)
        yield


def _replace(
    stack: ExitStack, module: Any, current: list[int], receive: Callable[[int, Rotation], None]
) -> None:
    original: Rotate = getattr(module, _ROTATE)

    def rotate(
        q: torch.Tensor,
        k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        *rest: Any,
        **words: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        turned = original(q, k, cos, sin, *rest, **words)
        if rest or words.get("unsqueeze_dim", 1) != 1:
            raise unsupported(_ROTATE, f"{rest or words}", "[batch, heads, tokens, head_dim]")
        receive(current[0], Rotation(q, k, turned[0], cos, sin, original))
        return turned

    setattr(module, _ROTATE, rotate)
    stack.callback(setattr, module, _ROTATE, original)
