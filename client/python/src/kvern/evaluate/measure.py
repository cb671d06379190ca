"""One window at a time: its cache as every arm leaves it, and what the model then says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvern.calibrate.masked import Prompt, Sight, prefill, resume
from kvern.calibrate.sensitivity import divergence
from kvern.evaluate.arms import Arm, Compressor
from kvern.evaluate.items import Item
from kvern.evaluate.peers import Peers

FULL = "full"
_BATCH = 8


@dataclass(frozen=True)
class Row:
    """One arm on one window. share: asked for. bytes_share: measured, metadata counted. kl: nat per
    token against the full cache; nll: of the text, nat per token; top1: agreement with the full
    cache; needle_logp: of the whole answer, in nat."""

    arm: str
    share: float
    bytes_share: float
    text: str
    window: int
    kl: float
    nll: float
    top1: float
    needle_logp: float
    needle_exact: bool
    chain: str


@dataclass(frozen=True)
class Plan:
    """What is compared: arms and presses, each at every share of the bytes."""

    arms: Sequence[Arm]
    peers: Sequence[str]
    shares: Sequence[float]


@dataclass(frozen=True)
class _Cell:
    arm: str
    share: float
    bytes_share: float
    chain: str
    sight: Sight


def measure(
    model: Any, compressor: Compressor, plan: Plan, items: Sequence[Item], dtype: torch.dtype
) -> Iterator[list[Row]]:
    """Rows of each item, the full cache first. dtype: in which the cache is held.

    Errors: those of Client.compress.
    """
    peers = Peers(plan.peers, plan.shares)
    for item in items:
        with peers.watching(model):
            prompt = prefill(model, item.context, dtype)
        yield _judge(model, item, list(_cells(prompt, compressor, plan, peers)))


def _cells(prompt: Prompt, compressor: Compressor, plan: Plan, peers: Peers) -> Iterator[_Cell]:
    full = prompt.sight
    yield _Cell(FULL, 1.0, 1.0, "", full)
    for arm in plan.arms:
        for share in plan.shares:
            made = compressor.compress(prompt, arm, share)
            yield _Cell(arm.name, share, made.share, made.chain, made.sight)
    for (name, share), sight in peers.sights(full).items():
        kept = sight.keep.float().mean().item()
        yield _Cell(f"kvpress {name}", share, kept, "", sight)


def _judge(model: Any, item: Item, cells: Sequence[_Cell]) -> list[Row]:
    rows: list[Row] = []
    reference: torch.Tensor | None = None
    asked = [*item.question, *item.answer[:-1]]
    for at in range(0, len(cells), _BATCH):
        batch = cells[at : at + _BATCH]
        sights = [cell.sight for cell in batch]
        texts = torch.log_softmax(resume(model, sights, item.after[:-1]), dim=-1)
        answers = torch.log_softmax(resume(model, sights, asked), dim=-1)
        if reference is None:
            reference = texts[0]
        for cell, text, answer in zip(batch, texts, answers, strict=True):
            rows.append(_row(item, cell, (reference, text), answer[-len(item.answer) :]))
    return rows


def _row(
    item: Item, cell: _Cell, texts: tuple[torch.Tensor, torch.Tensor], answer: torch.Tensor
) -> Row:
    full, text = texts
    following = torch.tensor(item.after[1:])[:, None]
    wanted = torch.tensor(item.answer)
    return Row(
        arm=cell.arm,
        share=cell.share,
        bytes_share=cell.bytes_share,
        text=item.text,
        window=item.window,
        kl=divergence(full, text).mean().item(),
        nll=-text.gather(-1, following).mean().item(),
        top1=(full.argmax(-1) == text.argmax(-1)).float().mean().item(),
        needle_logp=answer.gather(-1, wanted[:, None]).sum().item(),
        needle_exact=bool((answer.argmax(-1) == wanted).all()),
        chain=cell.chain,
    )
