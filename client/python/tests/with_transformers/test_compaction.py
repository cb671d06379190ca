"""compress(): what the smaller cache holds, and that the model goes on with it."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny
import torch
from transformers import DynamicCache, StaticCache

import kvern
import kvern.transformers as kt

HALF = kvern.Policy(keep_ratio=0.5, scorer="keydiff")
# The same tokens in every head, so that an attention mask over the full cache says the same.
WINDOW = kvern.Policy(budget_tokens=40, selector="sink_recent", scorer="key_norm", sink=4)


@pytest.mark.parametrize("positions", ["keep_logical", "renumber"])
def test_a_budget_that_holds_all_changes_no_bit(client: kvern.Client, positions: str) -> None:
    model, ids = tiny.model(), tiny.text(120)
    policy = kvern.Policy(budget_tokens=120, scorer="keydiff")
    made = kt.compress(tiny.fill(model, ids), model, client, policy, positions=positions)
    assert made.result.outcome == "noop"
    assert made.bytes_after == made.bytes_before
    want = tiny.greedy(model, tiny.fill(model, ids), 5, 16)
    got = tiny.greedy(model, made.cache, 5, 16)
    assert got[0] == want[0]
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("positions", ["keep_logical", "renumber"])
def test_the_cache_holds_what_the_server_kept(client: kvern.Client, positions: str) -> None:
    model, ids = tiny.model(), tiny.text(120)
    cache = tiny.fill(model, ids)
    made = kt.compress(cache, model, client, HALF, positions=positions)
    assert made.result.kept_counts.tolist() == [[60, 60]] * 2
    for index in range(2):
        kept = torch.tensor(made.result.kept_indices[index]).long()[..., None].expand(-1, -1, 16)
        values = tiny.values(cache, index)[0].gather(1, kept)
        assert torch.equal(tiny.values(made.cache, index)[0], values)
        keys = tiny.keys(cache, index)[0].gather(1, kept)
        assert torch.equal(tiny.keys(made.cache, index)[0], keys) == (positions == "keep_logical")
    assert tiny.keys(tiny.fill(model, ids)).equal(tiny.keys(cache))


def test_bf16_stays_bf16(client: kvern.Client) -> None:
    model, ids = tiny.make("llama").to(torch.bfloat16), tiny.text(120)
    cache = tiny.fill(model, ids)
    made = kt.compress(cache, model, client, HALF)
    assert made.bytes_before == 2 * 2 * 2 * 120 * 16 * 2
    kept = torch.tensor(made.result.kept_indices[1]).long()[..., None].expand(-1, -1, 16)
    assert tiny.keys(made.cache, 1).dtype == torch.bfloat16
    assert torch.equal(tiny.keys(made.cache, 1)[0], tiny.keys(cache, 1)[0].gather(1, kept))
    tiny.logits(model, tiny.text(5, seed=2), made.cache)
    assert made.cache.get_seq_length() == 125


def test_kept_bytes_are_counted(client: kvern.Client) -> None:
    model = tiny.model()
    cache = tiny.fill(model, tiny.text(120))
    made = kt.compress(cache, model, client, HALF)
    assert made.bytes_before == 2 * 2 * 2 * 120 * 16 * 4
    positions = 2 * 2 * 60 * 4
    assert made.bytes_after == made.bytes_before // 2 + positions
    renumbered = kt.compress(cache, model, client, HALF, positions="renumber")
    assert renumbered.bytes_after == made.bytes_before // 2


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_keep_logical_is_attention_with_the_dropped_tokens_masked(
    client: kvern.Client, attention: str
) -> None:
    model, ids, more = tiny.make("llama"), tiny.text(120), tiny.text(9, seed=2)
    model.set_attn_implementation(attention)
    made = kt.compress(tiny.fill(model, ids), model, client, WINDOW)
    assert made.next_position == 120
    kept = made.result.kept_indices
    assert (kept == kept[0, 0]).all()
    visible = torch.zeros(9, 129, dtype=torch.bool)
    visible[:, kept[0, 0].tolist()] = True
    visible[:, 120:] = torch.tril(torch.ones(9, 9, dtype=torch.bool))
    mask = torch.zeros(1, 1, 9, 129).masked_fill(~visible, torch.finfo(torch.float32).min)
    want = tiny.logits(model, more, tiny.fill(model, ids), attention_mask=mask)
    got = tiny.logits(model, more, made.cache)
    assert (got - want).abs().max() < 1e-4
    again = kt.compress(tiny.fill(model, ids), model, client, WINDOW)
    said = tiny.logits(model, more, again.cache, position_ids=again.position_ids(9))
    assert torch.equal(said, got)


def test_renumber_is_the_cache_of_a_shorter_text(client: kvern.Client) -> None:
    model, ids = tiny.model(), tiny.text(120)
    made = kt.compress(tiny.fill(model, ids), model, client, WINDOW, positions="renumber")
    assert type(made.cache.layers[0]) is type(DynamicCache(config=model.config).layers[0])
    assert made.next_position == made.cache.get_seq_length() == 40
    kept = torch.tensor(made.result.kept_indices[0, 0]).long()
    short = tiny.fill(model, ids[:, kept])
    # Deeper layers differ: their keys were computed with the dropped tokens in sight.
    assert (tiny.keys(made.cache) - tiny.keys(short)).abs().max() < 1e-4


def test_a_compacted_cache_is_compacted_again(client: kvern.Client) -> None:
    model, ids = tiny.model(), tiny.text(120)
    first = kt.compress(tiny.fill(model, ids), model, client, HALF)
    tiny.fill(model, tiny.text(30, seed=3), first.cache)
    assert first.cache.get_seq_length() == 150
    again = kt.compress(first.cache, model, client, HALF)
    assert again.result.kept_counts.tolist() == [[45, 45]] * 2
    assert again.next_position == 150
    positions = again.result.positions
    assert (positions[0, 0, -15:] == range(135, 150)).all()
    old = set(first.result.positions[0, 0].tolist())
    assert set(positions[0, 0].tolist()) <= old | set(range(120, 150))
    shorter = kt.compress(first.cache, model, client, HALF, positions="renumber")
    assert shorter.next_position == 45


def test_what_a_cache_must_be(client: kvern.Client) -> None:
    model, ids = tiny.model(), tiny.text(60)

    def refused(cache: object, match: str, **words: object) -> None:
        with pytest.raises(kvern.KvernError, match=match):
            kt.compress(cache, model, client, HALF, **words)  # type: ignore[arg-type]

    refused(tiny.fill(model, ids.expand(2, -1)), "got a batch of 2, want one sequence")
    refused(DynamicCache(), "got no layers")
    refused(DynamicCache(config=model.config), r"cache.layers\[0\]: got no tokens")
    refused(StaticCache(model.config, max_cache_len=80), "got StaticCache, want DynamicCache")
    windows = DynamicCache(config=tiny.make("mistral", sliding_window=16).config)
    refused(tiny.fill(model, ids, windows), "got DynamicSlidingWindowLayer, want DynamicLayer")
    refused(tiny.fill(model, ids), "got 'kept', want keep_logical or renumber", positions="kept")


def test_unequal_counts_are_refused(client: kvern.Client) -> None:
    policy = kvern.Policy(keep_ratio=0.3, scorer="value_norm", budgeter="pyramid:window=4")
    model = tiny.model()
    with pytest.raises(kvern.KvernError, match="one attention mask for all layers") as caught:
        kt.compress(tiny.fill(model, tiny.text(120)), model, client, policy)
    assert caught.value.reason == "SHAPE_CLASS"
    assert "uniform" in caught.value.next_step


def test_positions_of_the_policy_must_agree(client: kvern.Client) -> None:
    model, policy = tiny.model(), kvern.Policy("evict50", positions="renumber")
    with pytest.raises(kvern.KvernError, match="got 'renumber', want 'keep'"):
        kt.compress(tiny.fill(model, tiny.text(60)), model, client, policy)


def test_a_compacted_text_is_renumbered_when_nothing_goes(client: kvern.Client) -> None:
    model, ids = tiny.model(), tiny.text(120)
    first = kt.compress(tiny.fill(model, ids), model, client, WINDOW)
    all_of_it = kvern.Policy(budget_tokens=40, scorer="keydiff")
    made = kt.compress(first.cache, model, client, all_of_it, positions="renumber")
    straight = kt.compress(tiny.fill(model, ids), model, client, WINDOW, positions="renumber")
    assert made.next_position == 40
    assert (tiny.keys(made.cache) - tiny.keys(straight.cache)).abs().max() < 1e-4


def test_tokens_are_cropped_back_to_the_compaction(client: kvern.Client) -> None:
    model = tiny.model()
    cache = kt.compress(tiny.fill(model, tiny.text(120)), model, client, HALF).cache
    before = tiny.logits(model, tiny.text(5, seed=2), cache)
    cache.crop(120)
    assert cache.get_seq_length() == 120
    assert torch.equal(tiny.logits(model, tiny.text(5, seed=2), cache), before)
    with pytest.raises(ValueError, match="want 120 or more"):
        cache.crop(119)
