"""A cache layer that holds fewer tokens than the text has, and says so to transformers.

Everything outside counts in tokens of the text: positions, attention masks and what generate()
cuts off its input follow get_seq_length(). Only the mask must know how many keys there are, and
get_mask_sizes() is asked for exactly that. Sliding-window layers of transformers work likewise.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer


class LogicalLayer(DynamicLayer):
    """One layer of a compacted cache; new tokens are appended as in a DynamicLayer.

    dropped: tokens of the text that are not held. kept_positions: i32 [kv_heads, kept], where the
    kept tokens stand in the text, None when all tokens up to there are held or were renumbered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0
        self.kept_tokens = 0
        self.kept_positions: torch.Tensor | None = None

    @property
    def physical_tokens(self) -> int:
        """Tokens that are held."""
        return super().get_seq_length()

    def hold(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        positions: torch.Tensor | None,
        logical_tokens: int,
    ) -> None:
        """Holds these tokens of a text of that length, [1, kv_heads, kept, head_dim]."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.kept_tokens = keys.shape[-2]
        self.dropped = logical_tokens - self.kept_tokens
        self.kept_positions = positions if self.dropped else None

    def positions(self) -> torch.Tensor | None:
        """Where the held tokens stand, i32 [kv_heads, tokens]; None: at 0 to tokens - 1."""
        if self.kept_positions is None:
            return None
        first = self.dropped + self.kept_tokens
        recent = torch.arange(first, self.get_seq_length(), dtype=torch.int32)
        rows = recent.expand(self.kept_positions.shape[0], -1)
        return torch.cat([self.kept_positions, rows], dim=1)

    def get_seq_length(self) -> int:
        """Tokens of the text."""
        return self.physical_tokens + self.dropped

    def get_mask_sizes(self, cache_position: torch.Tensor) -> tuple[int, int]:
        return self.physical_tokens + int(cache_position.shape[0]), self.dropped

    def crop(self, max_length: int) -> None:
        """Forgets the last tokens of the text. Errors: ValueError where kept tokens were chosen
        from among them: what was dropped there cannot come back."""
        length = self.get_seq_length()
        wanted = length + max_length if max_length < 0 else max_length
        if wanted >= length:
            return
        if self.dropped and wanted < self.dropped + self.kept_tokens:
            raise ValueError(
                f"crop: got {wanted} tokens, want {self.dropped + self.kept_tokens} or more: "
                "this cache was compacted there"
            )
        held = wanted - self.dropped
        keys, values = tensors(self)
        self.keys, self.values = keys[..., :held, :], values[..., :held, :]

    def reset(self) -> None:
        """As new."""
        self.__init__()  # type: ignore[misc]


def tensors(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of a layer of a DynamicCache that was filled."""
    keys, values = layer.keys, layer.values
    assert isinstance(keys, torch.Tensor) and isinstance(values, torch.Tensor)
    return keys, values


def tokens_of(layer: Any) -> int:
    """Tokens that a layer of a DynamicCache holds."""
    return int(layer.keys.shape[-2]) if layer.is_initialized and layer.keys.numel() else 0


def bytes_of(layer: Any) -> int:
    """Of the keys, values and positions that a layer of a DynamicCache holds."""
    if not layer.is_initialized:
        return 0
    held = [*tensors(layer), getattr(layer, "kept_positions", None)]
    return sum(part.numel() * part.element_size() for part in held if part is not None)
