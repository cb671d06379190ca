"""What compress answers, over every way that bytes travel."""

from __future__ import annotations

import sys

import ml_dtypes
import numpy as np
import pytest
from conftest import ROPED, Cache, Server, random_cache

import kvern

VIAS = ["pool", "inline", "store"]


def test_smallest_use(server: Server, cache: Cache) -> None:
    k, v = cache
    with kvern.Client(server.address, model=ROPED) as client:
        result = client.compress(k, v, policy="balanced")
    assert result.outcome == "applied"
    assert result.bytes_before == k.nbytes + v.nbytes
    assert result.bytes_after <= result.bytes_before // 4
    assert result.k.shape == (4, 2, result.physical_tokens, 64)
    assert result.k.dtype == np.float16
    assert result.timings.score_us > 0
    assert result.chain.k_codec == "lm4+rm"


@pytest.mark.parametrize("via", VIAS)
def test_kept_tokens_are_the_source_bit_for_bit(
    client: kvern.Client, cache: Cache, via: str
) -> None:
    k, v = cache
    result = client.compress(k, v, kvern.Policy(keep_ratio=0.3, scorer="keydiff"), via=via)
    assert result.via == via
    assert result.kept_counts.tolist() == [[90, 90]] * 4
    index = result.kept_indices[..., None].astype(np.int64)
    assert np.array_equal(result.k, np.take_along_axis(k, index, 2))
    assert np.array_equal(result.v, np.take_along_axis(v, index, 2))
    assert np.array_equal(result.positions, result.kept_indices)


def test_every_way_gives_the_same_bytes(client: kvern.Client, cache: Cache) -> None:
    for policy in ("balanced", "safe", "evict50"):
        pool, store = (
            client.compress(*cache, policy, model=ROPED, via=via) for via in ("pool", "store")
        )
        assert np.array_equal(pool.kept_indices, store.kept_indices)
        assert pool.k.tobytes() == store.k.tobytes()
        assert pool.v.tobytes() == store.v.tobytes()


def test_packed_is_the_same_over_every_way(client: kvern.Client, cache: Cache) -> None:
    packed = [client.compress(*cache, model=ROPED, via=via, packed=True).packed for via in VIAS]
    assert packed[0] is not None
    for other in packed[1:]:
        assert other is not None
        assert other.blocks.tobytes() == packed[0].blocks.tobytes()
        assert np.array_equal(other.table, packed[0].table)
        assert np.array_equal(other.mean_key, packed[0].mean_key)  # type: ignore[arg-type]


def test_tcp_chooses_a_way_that_fits(server: Server, cache: Cache) -> None:
    with kvern.Client(server.tcp_address, model=ROPED) as client:
        assert client.compress(*cache, "evict50").via == "inline"
        assert client.compress(*cache, "balanced").via == "store"
        assert client.compress(*cache, "balanced", packed=True).via == "inline"
        large = random_cache(4, 2, 9000, 64)
        assert client.compress(*large, "evict50").via == "store"


@pytest.mark.parametrize("via", VIAS)
def test_without_a_layers_axis(client: kvern.Client, via: str) -> None:
    k, v = random_cache(2, 200, 64)
    result = client.compress(k, v, "evict50", via=via, with_scores=True)
    assert result.k.shape == (2, 100, 64)
    assert result.kept_indices.shape == (2, 100)
    assert result.kept_counts.tolist() == [100, 100]
    assert result.scores is not None
    assert result.scores.shape == (2, 200)
    assert np.isnan(result.scores[:, :4]).all()  # the sinks are protected
    assert np.array_equal(result.k[1], k[1][result.kept_indices[1]])


def test_one_array_per_layer(client: kvern.Client, cache: Cache) -> None:
    k, v = cache
    whole = client.compress(k, v, "evict50")
    layers = client.compress(list(k), list(v), "evict50")
    assert np.array_equal(layers.k, whole.k)


@pytest.mark.parametrize("via", VIAS)
def test_noop_is_the_same_cache(client: kvern.Client, cache: Cache, via: str) -> None:
    k, v = cache
    result = client.compress(k, v, kvern.Policy(budget_tokens=300, scorer="keydiff"), via=via)
    assert result.outcome == "noop"
    assert np.array_equal(result.k, k)
    assert np.array_equal(result.v, v)
    own = client.compress(k, v, kvern.Policy(budget_tokens=300, scorer="keydiff"), copy=True)
    assert not np.shares_memory(own.k, k)


@pytest.mark.parametrize("via", VIAS)
def test_empty_cache(client: kvern.Client, via: str) -> None:
    k, v = random_cache(1, 2, 0, 64)
    result = client.compress(k, v, "evict50", via=via)
    assert result.k.shape == (1, 2, 0, 64)
    assert result.kept_counts.tolist() == [[0, 0]]


def test_rows_that_keep_fewer_end_in_zeros(client: kvern.Client, cache: Cache) -> None:
    client.compress(*cache, kvern.Policy(keep_ratio=0.9, scorer="value_norm"))  # leaves its bytes
    policy = kvern.Policy(keep_ratio=0.3, scorer="value_norm", budgeter="pyramid")
    result = client.compress(*cache, policy)
    assert result.shape_class == "S3"
    counts = result.kept_counts
    assert counts.min() < counts.max() == result.k.shape[2]
    for layer, head in np.ndindex(4, 2):
        kept = counts[layer, head]
        assert not result.k[layer, head, kept:].any()
        assert not result.v[layer, head, kept:].any()
        assert (result.kept_indices[layer, head, kept:] == -1).all()
        assert np.array_equal(
            result.k[layer, head, :kept],
            cache[0][layer, head][result.kept_indices[layer, head, :kept]],
        )


def test_a_result_is_compressed_again(client: kvern.Client, cache: Cache) -> None:
    policy = kvern.Policy(keep_ratio=0.5, scorer="value_norm", budgeter="pyramid")
    first = client.compress(*cache, policy)
    inputs = kvern.Inputs(positions=first.positions, logical_tokens=first.logical_tokens)
    again = client.compress(
        first.k, first.v, kvern.Policy(budget_tokens=40, scorer="value_norm"), inputs=inputs
    )
    assert again.logical_tokens == 300
    at = again.kept_indices[0, 0]
    assert np.array_equal(again.positions[0, 0], first.positions[0, 0][at])
    with pytest.raises(kvern.KvernError, match="only shared memory carries"):
        client.compress(first.k, first.v, policy, inputs=inputs, via="inline")


def test_bf16_of_ml_dtypes_and_of_bits(client: kvern.Client, cache: Cache) -> None:
    k, v = (plane.astype(ml_dtypes.bfloat16) for plane in cache)
    result = client.compress(k, v, "evict50")
    assert result.k.dtype == ml_dtypes.bfloat16
    assert result.shared
    bits = client.compress(k.view(np.uint16), v.view(np.uint16), "evict50", dtype="bf16")
    assert bits.k.dtype == np.uint16
    assert np.array_equal(bits.k, result.k.view(np.uint16))


def test_side_tensors_reach_the_scorer(client: kvern.Client, cache: Cache) -> None:
    scores = np.zeros((4, 2, 300), np.float32)
    scores[:, 0, 100:150] = 1
    scores[:, 1, 50:100] = 1
    policy = kvern.Policy(budget_tokens=54, scorer="external", recent=0, recent_share=0.0)
    result = client.compress(*cache, policy, inputs=kvern.Inputs(external_scores=scores))
    for head, first in ((0, 100), (1, 50)):
        assert result.kept_indices[2, head].tolist() == [0, 1, 2, 3, *range(first, first + 50)]


def test_protected_ranges_stay(client: kvern.Client, cache: Cache) -> None:
    inputs = kvern.Inputs(protected=[(120, 130)])
    result = client.compress(
        *cache, kvern.Policy(budget_tokens=50, scorer="keydiff"), inputs=inputs
    )
    assert set(range(120, 130)) <= set(result.kept_indices[3, 1].tolist())


def test_renumbered_positions(client: kvern.Client, cache: Cache) -> None:
    policy = kvern.Policy("evict50", positions="renumber")
    result = client.compress(*cache, policy, model=ROPED)
    assert result.logical_tokens == 150
    assert result.positions[0, 0].tolist() == list(range(150))


def test_plan_moves_nothing(client: kvern.Client, cache: Cache) -> None:
    planned = client.plan(*cache, "small", model=ROPED)
    result = client.compress(*cache, "small", model=ROPED)
    assert np.array_equal(planned.kept_indices, result.kept_indices)
    assert planned.bytes_after == result.bytes_after
    assert planned.chain == result.chain


def test_numpy_never_imports_torch(client: kvern.Client, cache: Cache) -> None:
    client.compress(*cache, "evict50")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "torch"]
    assert loaded == [] or "test_torch" in sys.modules
