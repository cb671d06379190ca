"""Means and covariances of a model's queries over windows of text, summed in double."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from kvern.calibrate.artifact import Centres, Floats, Moments
from kvern.calibrate.tap import Rotation, attention_layers, tapped
from kvern.transformers.refusal import unsupported

# Queries of a window's first tokens are outliers, which one covariance would not survive.
SINK = 4


@dataclass
class Statistics:
    """Sums per layer over all windows so far. layout, rotary_dim: of the model's RoPE."""

    layers: int
    tokens: int = 0
    layout: str = ""
    rotary_dim: int = 0
    _sums: dict[int, dict[str, torch.Tensor]] = field(default_factory=dict, repr=False)
    _after_sink: int = 0

    def centres(self) -> Centres:
        """Every token counts."""
        means = [self._stack(name) / self.tokens for name in ("re", "im", "abs")]
        return Centres(*(_floats(mean) for mean in means))

    def moments(self) -> Moments:
        """Without the first tokens of every window."""
        mean = self._stack("q") / self._after_sink
        squares = self._stack("qq") / self._after_sink
        return Moments(_floats(mean), _floats(squares - mean[..., :, None] * mean[..., None, :]))

    def add(self, layer: int, rotation: Rotation) -> None:
        queries = rotation.queries[0].detach().double()
        self._check(rotation, queries)
        low, high = self._bands(queries)
        later = queries[:, SINK:]
        new = {
            "re": low.sum(1),
            "im": high.sum(1),
            "abs": torch.hypot(low, high).sum(1),
            "q": later.sum(1),
            "qq": later.transpose(1, 2) @ later,
        }
        held = self._sums.setdefault(layer, {})
        for name, value in new.items():
            held[name] = held[name] + value if name in held else value
        if layer == 0:
            self.tokens += queries.shape[1]
            self._after_sink += later.shape[1]

    def _check(self, rotation: Rotation, queries: torch.Tensor) -> None:
        if not self.layout:
            self.layout, self.rotary_dim = rotation.layout()
        if self.rotary_dim > queries.shape[-1]:
            raise unsupported("rope", f"{self.rotary_dim} rotated dims", "at most head_dim")

    def _bands(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rotated = queries[..., : self.rotary_dim]
        if self.layout == "interleaved":
            return rotated[..., 0::2], rotated[..., 1::2]
        low, high = rotated.chunk(2, dim=-1)
        return low, high

    def _stack(self, name: str) -> torch.Tensor:
        return torch.stack([self._sums[layer][name] for layer in range(self.layers)])


def collect(model: Any, windows: Iterable[Sequence[int]]) -> Statistics:
    """windows: token ids, each a text of its own from position 0.

    Errors: UNIMPLEMENTED for a model that does not rotate its queries as most do.
    """
    statistics = Statistics(len(attention_layers(model)))
    with torch.no_grad(), tapped(model, statistics.add):
        for window in windows:
            before = statistics.tokens
            model.base_model(torch.tensor([list(window)], device=model.device), use_cache=False)
            if statistics.tokens == before:
                raise unsupported("model", type(model).__name__, "one that calls its module's RoPE")
    return statistics


def _floats(of: torch.Tensor) -> Floats:
    return of.cpu().numpy().astype(np.float32)
