"""Presses of kvpress: the tokens that they keep, as masks over the full cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from kvern.calibrate.masked import Sight
from kvern.calibrate.tap import attention_layers
from kvern.errors import KvernError

PEERS = {
    "expected_attention": "ExpectedAttentionPress",
    "keydiff": "KeyDiffPress",
    "knorm": "KnormPress",
    "random": "RandomPress",
    "snapkv": "SnapKVPress",
    "streaming_llm": "StreamingLLMPress",
    "tova": "TOVAPress",
}


class Peers:
    """Scores of the named presses for every layer of one forward pass.

    shares: of the tokens that stay; the scores of streaming_llm depend on it. Errors:
    INVALID_ARGUMENT for a press that is not in PEERS.
    """

    def __init__(self, names: Sequence[str], shares: Sequence[float]) -> None:
        unknown = [name for name in names if name not in PEERS]
        if unknown:
            raise KvernError(
                "INVALID_ARGUMENT", f"peers: got {', '.join(unknown)}, want {', '.join(PEERS)}"
            )
        self._cells = [(name, share) for name in names for share in shares]
        self._kept: dict[tuple[str, float], list[torch.Tensor]] = {}
        self._presses = {cell: _press(*cell) for cell in self._cells}

    def sights(self, full: Sight) -> dict[tuple[str, float], Sight]:
        """Of the pass that `watching` saw last, by name and share."""
        return {cell: Sight(full.k, full.v, torch.stack(kept)) for cell, kept in self._kept.items()}

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """The forward pass in here is the one that presses judge."""
        self._kept = {cell: [] for cell in self._cells}
        for press in self._presses.values():
            prepare: Callable[[Any], None] | None = getattr(press, "post_init_from_model", None)
            if prepare is not None:
                prepare(model)
        with ExitStack() as stack:
            for layer in attention_layers(model):
                layer.rotary_emb = model.base_model.rotary_emb
                hook = layer.register_forward_hook(self._judge, with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _judge(self, module: Any, args: Any, words: dict[str, Any], output: Any) -> None:
        del args
        layer = words["past_key_values"].layers[module.layer_idx]
        for cell, press in self._presses.items():
            torch.manual_seed(module.layer_idx)  # of the random press
            scores = press.score(
                module, words["hidden_states"], layer.keys, layer.values, output[1], words
            )[0]
            count = int(scores.shape[-1] * (1 - press.compression_ratio))
            best = scores.topk(count, dim=-1).indices
            keep = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
            self._kept[cell].append(keep)


def _press(name: str, share: float) -> Any:
    import kvpress

    return getattr(kvpress, PEERS[name])(compression_ratio=1 - share)
