"""KvernPress: the sets that kvpress's own presses keep, and its protocol."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("kvpress")

import kvpress
import real_model
import tiny
import torch
from transformers import DynamicCache

import kvern
import kvern.transformers as kt
from kvern.transformers.queries import QUERY_MODELS

# Two f32 sums in another order: what differs less than this is a tie.
_TIE = 1e-4


class Spy:
    """Notes the scores that a press of kvpress gave to each layer."""

    def __init__(self, press: Any) -> None:
        self.scores: list[torch.Tensor] = []
        self.press = press
        original = press.score

        def score(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.scores.append(original(*args, **kwargs))
            return self.scores[-1]

        press.score = score


def compare(model: Any, ids: torch.Tensor, press: Any, client: kvern.Client) -> tuple[int, int]:
    """Runs both. Answers (sets that are equal, sets that differ in ties only)."""
    ours = kt.KvernPress.like(press, client)
    spy = Spy(press)
    theirs = DynamicCache(config=model.config)
    with press(model):
        tiny.logits(model, ids, theirs)
    cache = DynamicCache(config=model.config)
    with ours(model):
        tiny.logits(model, ids, cache)
    assert cache.get_seq_length() == theirs.get_seq_length()
    return count_equal(spy.scores, ours.kept)


def count_equal(scores: list[torch.Tensor], kept: dict[int, torch.Tensor]) -> tuple[int, int]:
    equal = ties = 0
    for layer, rows in enumerate(scores):
        for row, want in zip(kept[layer].flatten(0, 1), rows.flatten(0, 1), strict=True):
            best = set(want.topk(len(row)).indices.tolist())
            odd = best.symmetric_difference(row.tolist())
            equal += not odd
            ties += bool(odd)
            if odd:  # each sits on the edge between kept and dropped
                edge = want.topk(len(row)).values[-1]
                assert max(abs(float(want[i] - edge)) for i in odd) < _TIE * float(want.std())
    return equal, ties


def presses(ratio: float) -> dict[str, Any]:
    return {
        "knorm": kvpress.KnormPress(ratio),
        "keydiff": kvpress.KeyDiffPress(ratio),
        "snapkv": kvpress.SnapKVPress(ratio, window_size=12, kernel_size=7),
        "expected_attention": kvpress.ExpectedAttentionPress(ratio, n_future_positions=128),
        "expected_attention, no sinks": kvpress.ExpectedAttentionPress(ratio, n_sink=0),
    }


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
@pytest.mark.parametrize("name", sorted(presses(0)))
def test_kept_sets_are_those_of_kvpress(client: kvern.Client, name: str, ratio: float) -> None:
    ids = torch.cat([tiny.text(150), tiny.text(150, seed=9)])
    equal, ties = compare(tiny.make("llama"), ids, presses(ratio)[name], client)
    assert equal + ties == 8
    assert ties == 0


@pytest.mark.parametrize("name", sorted(presses(0)))
def test_kept_sets_on_a_real_model(client: kvern.Client, name: str) -> None:
    real_model.need()
    import chat_script

    model, tokenizer = real_model.load()
    text = " ".join(said + answer for said, answer in map(chat_script.turn, range(6)))
    ids = tokenizer(text, return_tensors="pt").input_ids
    equal, ties = compare(model, ids, presses(0.5)[name], client)
    assert equal + ties == 90
    # A word that comes twice has keys of equal norm in layer 0.
    assert equal >= 85


@pytest.mark.parametrize("kind", QUERY_MODELS)
def test_queries_of_every_architecture(client: kvern.Client, kind: str) -> None:
    for name in ("snapkv", "expected_attention"):
        equal, ties = compare(tiny.make(kind), tiny.text(150), presses(0.5)[name], client)
        assert (equal, ties) == (4, 0), name


def test_generation_goes_on_as_with_kvpress(client: kvern.Client) -> None:
    model, ids = tiny.make("llama"), tiny.text(100)
    words = {"max_new_tokens": 20, "min_new_tokens": 20}
    with kvpress.KeyDiffPress(0.5)(model):
        want = model.generate(ids, **words)
    with kt.KvernPress(client, scorer="keydiff", compression_ratio=0.5)(model):
        got = model.generate(ids, **words)
    assert torch.equal(got, want)


def test_a_policy_beyond_kvpress(client: kvern.Client) -> None:
    model = tiny.make("llama")
    press = kt.KvernPress(client, compression_ratio=0.75)
    with press(model):
        cache = tiny.fill(model, tiny.text(100))
    assert cache.get_seq_length() == 25
    for kept in press.kept.values():
        assert kept[0, :, :4].tolist() == [[0, 1, 2, 3]] * 2  # sinks
        assert (kept[0, :, -12:] == torch.arange(88, 100)).all()  # recent share
    again = tiny.fill(model, tiny.text(100))
    assert again.get_seq_length() == 100  # the hooks are gone


def test_what_is_refused(client: kvern.Client) -> None:
    def refused(match: str, **words: Any) -> None:
        with pytest.raises(kvern.KvernError, match=match):
            kt.KvernPress(client, **words)

    refused(r"got 1.0, want \[0, 1\)", compression_ratio=1.0)
    refused("want compression_ratio", policy=kvern.Policy(keep_ratio=0.5, scorer="keydiff"))
    refused("got a policy too", scorer="keydiff", policy="evict50")
    refused("presses leave keys", policy=kvern.Policy("evict50", positions="renumber"))
    with pytest.raises(kvern.KvernError, match="got TOVAPress, want KnormPress"):
        kt.KvernPress.like(kvpress.TOVAPress(0.5), client)
    mean_only = kvpress.ExpectedAttentionPress(0.5, use_covariance=False)
    with pytest.raises(kvern.KvernError, match="use_covariance: got False"):
        kt.KvernPress.like(mean_only, client)
    model = tiny.make("granite")
    with (
        pytest.raises(kvern.KvernError, match="queries of 'granite', want llama"),
        kt.KvernPress(client, scorer="snapkv", compression_ratio=0.5)(model),
    ):
        tiny.fill(model, tiny.text(60))
    with (
        pytest.raises(kvern.KvernError, match="got LogicalLayer"),
        kt.KvernPress(client, scorer="keydiff", compression_ratio=0.5)(model),
    ):
        tiny.fill(model, tiny.text(60), kt.KvernCache(model, client, kt.Budget(tokens=99)))
