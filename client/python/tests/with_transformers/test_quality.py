"""Quality on a real model: KL of the next-token distribution to that of the full cache.

The figures to beat are those of a KeyDiff in numpy with the same protection, measured on this
prompt: 0.084 with keys where they stand, 0.067 renumbered. A random half gives more than 1.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import real_model
import tiny
import torch
from transformers import DynamicCache

import kvern
import kvern.transformers as kt

_FACT = (
    "The lighthouse keeper's name is Orsolya Bartok and the secret code of the harbour is 7319. "
)
_FILLER = (
    "The harbour of Velm lies at the mouth of a wide grey river. Every morning the fishing boats "
    "leave before sunrise, and every evening the gulls follow them home. The town has a market "
    "square, two churches, a school, a small library and a railway station that nobody has used "
    "since the bridge fell. In winter the wind comes from the north and the children skate on the "
    "canal. In spring the apple trees along the wall flower all at once, and visitors come from "
    "the hills to see them. "
)
_PROMPT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    f"{_FILLER}{_FILLER.replace('harbour', 'market')}{_FACT}{_FILLER.replace('river', 'canal')}"
    f"{_FILLER}\nQuestion: What is the secret code of the harbour, and who keeps the lighthouse?"
    "<|im_end|>\n<|im_start|>assistant\n"
)
_STEPS = 16
# Sinks and the last 32 tokens are protected, as in the figures to beat.
_KEYDIFF = kvern.Policy(keep_ratio=0.5, scorer="keydiff", sink=4, recent=32, recent_share=0.0)
_RANDOM = kvern.Policy(keep_ratio=0.5, scorer="random")


class Prompt:
    """The prompt's cache, and how the model goes on with all of it."""

    def __init__(self) -> None:
        real_model.need()
        self.model, self.tokenizer = real_model.load()
        ids = self.tokenizer(_PROMPT, add_special_tokens=False, return_tensors="pt").input_ids
        assert ids.shape == (1, 472)
        self.ids = ids
        self.cache = DynamicCache(config=self.model.config)
        first = int(tiny.logits(self.model, ids, self.cache)[-1].argmax())
        self.first = first
        whole = DynamicCache(config=self.model.config)
        for index in range(len(self.cache.layers)):
            whole.update(tiny.keys(self.cache, index), tiny.values(self.cache, index), index)
        self.said, self.logits = tiny.greedy(self.model, whole, first, _STEPS)
        self.text = str(self.tokenizer.decode([first, *self.said]))
        self.forced = torch.tensor([[first, *self.said[:-1]]])

    def kl(self, made: kt.Compaction) -> float:
        got = tiny.logits(self.model, self.forced, made.cache).double().log_softmax(-1)
        want = self.logits.double().log_softmax(-1)
        return float((want.exp() * (want - got)).sum(-1).mean())


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    return Prompt()


def test_the_model_answers(prompt: Prompt) -> None:
    assert "Orsolya Bartok" in prompt.text


def test_identity_over_16_steps(client: kvern.Client, prompt: Prompt) -> None:
    kept_all = kvern.Policy(budget_tokens=472, scorer="keydiff")
    made = kt.compress(prompt.cache, prompt.model, client, kept_all)
    said, logits = tiny.greedy(prompt.model, made.cache, prompt.first, _STEPS)
    assert said == prompt.said
    assert torch.equal(logits, prompt.logits)


@pytest.mark.parametrize(("positions", "figure"), [("keep_logical", 0.084), ("renumber", 0.0675)])
def test_half_the_tokens(
    client: kvern.Client, prompt: Prompt, positions: str, figure: float
) -> None:
    def kl(policy: kvern.Policy | str | None) -> float:
        made = kt.compress(prompt.cache, prompt.model, client, policy, positions=positions)
        assert made.result.kept_counts.min() == made.result.kept_counts.max() == 236
        return prompt.kl(made)

    keydiff, default, control = kl(_KEYDIFF), kl(None), kl(_RANDOM)
    assert keydiff <= figure
    assert default < keydiff
    assert control > 1.0


@pytest.mark.parametrize("positions", ["keep_logical", "renumber"])
def test_generation_under_a_byte_budget(
    client: kvern.Client, prompt: Prompt, positions: str
) -> None:
    budget = kt.Budget(memory=300 * kt.bytes_per_token(prompt.model), every=8)
    cache = kt.KvernCache(prompt.model, client, budget, positions=positions)
    held: list[int] = []
    hook = prompt.model.register_forward_hook(lambda *_: held.append(cache.nbytes))
    with torch.no_grad():
        done = prompt.model.generate(
            prompt.ids, past_key_values=cache, max_new_tokens=40, min_new_tokens=40, do_sample=False
        )
    hook.remove()
    text = prompt.tokenizer.decode(done[0, 472:])
    assert "Orsolya Bartok" in text
    assert len(cache.steps) >= 5
    assert 0.9 * max(held) < min(held) <= max(held) <= budget.memory  # type: ignore[operator]


def test_codes_alone_lose_little(client: kvern.Client, prompt: Prompt) -> None:
    def kl(policy: Any) -> float:
        return prompt.kl(kt.compress(prompt.cache, prompt.model, client, policy))

    assert kl("safe") < 1e-3
    assert kl("balanced") < 0.02
    assert kl("small") < 0.05
