"""KvernCache: within its budget at every step of generate(), in both position modes."""

from __future__ import annotations

import gc
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch

import kvern
import kvern.transformers as kt

MODES = ["keep_logical", "renumber"]
TOKEN_BYTES = 2 * 2 * 2 * 16 * 4  # k and v, layers, kv_heads, head_dim, f32


def _generate(model: Any, ids: torch.Tensor, cache: Any, tokens: int, **words: Any) -> torch.Tensor:
    """The text with `tokens` more."""
    done = model.generate(
        ids, past_key_values=cache, max_new_tokens=tokens, min_new_tokens=tokens, **words
    )
    assert isinstance(done, torch.Tensor)
    return done


def _watch(cache: kt.KvernCache, seen: list[int]) -> Any:
    """Notes the cache's bytes after every forward pass."""
    return lambda *_: seen.append(cache.nbytes)


@pytest.mark.parametrize("mode", MODES)
def test_generate_stays_within_the_bytes(client: kvern.Client, mode: str) -> None:
    model = tiny.make("llama")
    budget = kt.Budget(memory=50 * (TOKEN_BYTES + 16), every=8)
    cache = kt.KvernCache(model, client, budget, positions=mode)
    assert cache.budget_tokens == (50 if mode == "keep_logical" else 51)
    seen: list[int] = []
    model.register_forward_hook(_watch(cache, seen))
    ids = _generate(model, tiny.text(100), cache, 120)
    assert ids.shape == (1, 220)
    assert cache.get_seq_length() == 219
    assert len(seen) == 120
    assert max(seen) <= budget.memory  # type: ignore[operator]
    assert min(seen) > 0.8 * max(seen)
    assert len(cache.steps) == 1 + 119 // 8
    assert cache.steps[0].tokens_before == 100
    assert {step.tokens_after for step in cache.steps} == {cache.budget_tokens - 8}


@pytest.mark.parametrize("mode", MODES)
def test_a_large_budget_changes_no_bit(client: kvern.Client, mode: str) -> None:
    model, ids = tiny.make("llama"), tiny.text(60)
    cache = kt.KvernCache(model, client, kt.Budget(tokens=200, every=8), positions=mode)
    words = {"output_logits": True, "return_dict_in_generate": True, "max_new_tokens": 16}
    got = model.generate(ids, past_key_values=cache, **words)
    want = model.generate(ids, **words)
    assert torch.equal(got.sequences, want.sequences)
    for a, b in zip(got.logits, want.logits, strict=True):
        assert torch.equal(a, b)
    assert cache.steps == []


@pytest.mark.parametrize("mode", MODES)
def test_generate_is_what_compress_by_hand_gives(client: kvern.Client, mode: str) -> None:
    model, ids = tiny.make("llama"), tiny.text(100)
    cache = kt.KvernCache(model, client, kt.Budget(tokens=60, every=20), positions=mode)
    got = _generate(model, ids, cache, 18)[0, 100:].tolist()
    full = tiny.fill(model, ids[:, :99])
    first = int(tiny.logits(model, ids[:, 99:], full)[-1].argmax())
    policy = kvern.Policy("evict50", budget_tokens=40)
    made = kt.compress(full, model, client, policy, positions=mode)
    assert got == [first, *tiny.greedy(model, made.cache, first, 17)[0]]


def test_renumbered_positions_stay_below_the_budget(client: kvern.Client) -> None:
    model = tiny.make("llama")
    seen: list[int] = []
    model.model.rotary_emb.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(int(kwargs["position_ids"].max())),
        with_kwargs=True,
    )
    budget = kt.Budget(tokens=40, every=10)
    cache = kt.KvernCache(model, client, budget, positions="renumber")
    _generate(model, tiny.text(50), cache, 60)
    assert seen[0] == 49
    assert max(seen[1:]) < 40
    seen.clear()
    kept = kt.KvernCache(model, client, budget)
    _generate(model, tiny.text(50), kept, 60)
    assert seen[1:] == list(range(50, 109))
    # Both have the second turn of a chat append to the text.
    for each in (cache, kept):
        ids = torch.cat([tiny.text(50), tiny.text(59, seed=5), tiny.text(6, seed=6)], dim=1)
        assert _generate(model, ids, each, 4).shape == (1, 119)
        assert each.get_seq_length() == 118


def test_a_prompt_in_chunks_never_exceeds_budget_and_chunk(client: kvern.Client) -> None:
    model = tiny.make("llama")
    cache = kt.KvernCache(model, client, kt.Budget(tokens=64, every=32))
    longest: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: longest.append(cache.physical_tokens))
    _generate(model, tiny.text(400), cache, 10, prefill_chunk_size=32)
    assert max(longest) <= 64 + 32
    assert cache.physical_tokens <= 64
    assert cache.get_seq_length() == 409


def test_the_hook_goes_with_the_cache(client: kvern.Client) -> None:
    model = tiny.make("llama")
    cache = kt.KvernCache(model, client, kt.Budget(tokens=40, every=10), positions="renumber")
    assert len(model._forward_pre_hooks) == 1
    del cache
    gc.collect()
    assert len(model._forward_pre_hooks) == 0


def test_what_is_refused(client: kvern.Client) -> None:
    model = tiny.model()

    def refused(match: str, budget: kt.Budget, **words: Any) -> None:
        with pytest.raises(kvern.KvernError, match=match):
            kt.KvernCache(model, client, budget, **words)

    refused("want one", kt.Budget())
    refused("want one", kt.Budget(tokens=40, memory="4MiB"))
    refused("got '25%', want bytes", kt.Budget(memory="25%"))
    refused("got 64, want 1 to 39", kt.Budget(tokens=40))
    refused("holds 0 tokens of 528 bytes", kt.Budget(memory=500))
    good = kt.Budget(tokens=40, every=8)
    refused("got a budget", good, policy=kvern.Policy(keep_ratio=0.5, scorer="keydiff"))
    refused("want keep_logical or renumber", good, positions="sliding")
    coded = kt.KvernCache(model, client, good, policy="balanced")
    with pytest.raises(kvern.KvernError, match=r"got lm4, lm4\+rm, want raw16"):
        tiny.fill(model, tiny.text(60), coded)
    batch = kt.KvernCache(model, client, good)
    with pytest.raises(kvern.KvernError, match="got a batch of 2, want one sequence"):
        tiny.fill(model, tiny.text(60).expand(2, -1), batch)


def test_a_server_that_is_gone_leaves_all_tokens(own_server: Any) -> None:
    server = own_server()
    model = tiny.model()
    with kvern.Client(server.address) as client:
        cache = kt.KvernCache(model, client, kt.Budget(tokens=40, every=8))
        server.kill()
        with pytest.raises(kvern.KvernError) as caught:
            tiny.fill(model, tiny.text(60), cache)
    assert caught.value.code == "UNAVAILABLE"
    assert cache.get_seq_length() == cache.physical_tokens == 60
