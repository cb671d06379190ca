"""Policies in one word each, and caches as a server leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from kvern import Client, CompressResult, Inputs, ModelSpec, Policy
from kvern.calibrate.masked import Prompt, Sight
from kvern.errors import KvernError

EVICT = "evict"
_WINDOW = 32  # latest queries, for scorers that look at them


@dataclass(frozen=True)
class Arm:
    """name: as given. policy: without a budget."""

    name: str
    policy: Policy


def parse_policies(words: str, calibrations: Sequence[str]) -> list[Arm]:
    """``balanced,balanced/keydiff:unrotate=true,evict/snapkv``: a preset; a preset with one scorer
    in place of its own; ``evict`` with a scorer: bytes as they were, nothing coded. The parameters
    of a stage are separated by commas as well. Errors: INVALID_ARGUMENT.
    """
    names: list[str] = []
    for part in words.split(","):
        # A parameter goes on with the stage before it.
        if names and "=" in part and ":" not in part:
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return [Arm(name, _policy(name, calibrations)) for name in names]


def _policy(name: str, calibrations: Sequence[str]) -> Policy:
    preset, slash, scorer = name.partition("/")
    if not preset or (slash and not scorer) or (preset == EVICT and not scorer):
        raise KvernError(
            "INVALID_ARGUMENT", f"policies: got '{name}', want PRESET, PRESET/SCORER, evict/SCORER"
        )
    policy = Policy("" if preset == EVICT else preset, calibrations=calibrations)
    return replace(policy, scorer=scorer) if scorer else policy


@dataclass(frozen=True, eq=False)
class Compressed:
    """sight: the cache, decoded. share: bytes after, with metadata, of bytes before."""

    sight: Sight
    share: float
    chain: str


class Compressor:
    """Caches of one model at one server."""

    def __init__(self, client: Client, spec: ModelSpec, dtype: torch.dtype) -> None:
        self._client = client
        self._spec = spec
        self._dtype = dtype

    def compress(self, prompt: Prompt, arm: Arm, share: float) -> Compressed:
        """share: of the bytes of the cache, metadata counted. Errors: those of Client.compress."""
        full = prompt.sight
        result: CompressResult[Any] = self._client.compress(
            full.k.to(self._dtype),
            full.v.to(self._dtype),
            replace(arm.policy, budget_bytes=f"{100 * share:g}%"),
            model=self._spec,
            inputs=Inputs(q_window=self._queries(prompt)),
            copy=True,
        )
        chain = result.chain
        return Compressed(
            sight=_sight(full, result),
            share=result.bytes_after / result.bytes_before,
            chain=f"{chain.scorer}; {chain.budgeter}; K {chain.k_codec}, V {chain.v_codec}",
        )

    def _queries(self, prompt: Prompt) -> torch.Tensor:
        rows = [rotation.rotated_queries[0, :, -_WINDOW:] for rotation in prompt.rotations]
        return torch.stack(rows).float().contiguous()


def _sight(full: Sight, result: CompressResult[Any]) -> Sight:
    """What was kept, back at its place in a cache of the old length."""
    indices = torch.tensor(result.kept_indices).long()
    held = indices >= 0
    k, v, keep = full.k.clone(), full.v.clone(), torch.zeros_like(full.keep)
    for layer in range(indices.shape[0]):
        for head in range(indices.shape[1]):
            slots = held[layer, head]
            tokens = indices[layer, head][slots]
            k[layer, head, tokens] = result.k[layer, head][: len(slots)][slots].to(k.dtype)
            v[layer, head, tokens] = result.v[layer, head][: len(slots)][slots].to(v.dtype)
            keep[layer, head, tokens] = True
    return Sight(k, v, keep)
