"""Paged memory of an engine: block ids go out, compacted tables come back."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from conftest import Cache, Server, random_cache
from numpy.typing import NDArray

import kvern

MODEL = kvern.ModelSpec(num_layers=2, kv_heads=2, head_dim=64)
BLOCKS, BLOCK_TOKENS, TOKENS = 24, 16, 150
HALF = kvern.Policy(budget_tokens=75, scorer="key_norm")
Plane = NDArray[np.float16]


class Engine:
    """Head-major blocks [layer, k or v, block, head, token, dim] in shared memory."""

    def __init__(self, client: kvern.Client, read_only: bool = False) -> None:
        shape = (2, 2, BLOCKS, 2, BLOCK_TOKENS, 64)
        self.memory = kvern.SealedMemory(int(np.prod(shape)) * 2)
        self.planes: NDArray[np.float16] = self.memory.array(shape, np.float16)
        layers = [
            kvern.PoolLayer.of(self.memory, i, self.planes[i, 0], self.planes[i, 1]) for i in (0, 1)
        ]
        spec = kvern.PoolSpec("f16", BLOCK_TOKENS, BLOCKS, layers, read_only=read_only)
        self.pool = client.register_pool(self.memory, spec, model=MODEL)

    def write(self, blocks: list[int], cache: Cache) -> None:
        for kind, dense in enumerate(cache):
            for token in range(dense.shape[2]):
                block, slot = blocks[token // BLOCK_TOKENS], token % BLOCK_TOKENS
                self.planes[:, kind, block, :, slot] = dense[:, :, token]

    def read(self, blocks: NDArray[np.uint32], tokens: int) -> Cache:
        rows = self.planes[:, :, blocks].transpose(0, 1, 3, 2, 4, 5)
        dense = rows.reshape(2, 2, 2, -1, 64)[:, :, :, :tokens]
        return dense[:, 0], dense[:, 1]

    def sequence(self, **facts: object) -> kvern.PagedSequence:
        arguments: dict[str, object] = {
            "sequence_id": "one",
            "pool": self.pool,
            "block_ids": SOURCE,
            "tokens": TOKENS,
        }
        return kvern.PagedSequence(**(arguments | facts))  # type: ignore[arg-type]


SOURCE = [3, 20, 7, 1, 11, 5, 2, 9, 14, 4]
TARGET = [0, 6, 8, 10, 12, 13]


@pytest.fixture
def engine(client: kvern.Client) -> Iterator[Engine]:
    made = Engine(client)
    made.write(SOURCE, random_cache(2, 2, TOKENS, 64))
    yield made
    client.release_sequences(["one", "two"])
    client.unregister_pool(made.pool)


def test_copy_to_fresh_blocks(client: kvern.Client, engine: Engine) -> None:
    cache = random_cache(2, 2, TOKENS, 64)
    (result,) = client.compress_sequences(
        [engine.sequence(destination_block_ids=TARGET)], HALF, model=MODEL, with_kept=True
    )
    assert (result.outcome, result.error, result.physical_tokens) == ("applied", None, 75)
    assert result.block_ids.tolist() == TARGET[:5]
    assert sorted(result.freed_block_ids.tolist()) == sorted(SOURCE)
    assert result.next_slot == TARGET[4] * BLOCK_TOKENS + 75 % BLOCK_TOKENS
    assert result.epoch == 1
    assert result.kept_indices is not None
    k, v = engine.read(result.block_ids, 75)
    index = result.kept_indices[..., None].astype(np.int64)
    assert np.array_equal(k, np.take_along_axis(cache[0], index, 2))
    assert np.array_equal(v, np.take_along_axis(cache[1], index, 2))
    dense = client.compress(*cache, HALF, model=MODEL)
    assert np.array_equal(dense.kept_indices, result.kept_indices)


def test_compact_in_place(client: kvern.Client, engine: Engine) -> None:
    (result,) = client.compress_sequences(
        [engine.sequence()], HALF, model=MODEL, placement="compact", with_kept=True
    )
    assert set(result.block_ids.tolist()) | set(result.freed_block_ids.tolist()) == set(SOURCE)
    assert result.kept_indices is not None
    k, _ = engine.read(result.block_ids, 75)
    index = result.kept_indices[..., None].astype(np.int64)
    assert np.array_equal(k, np.take_along_axis(random_cache(2, 2, TOKENS, 64)[0], index, 2))


def test_faults_of_one_stand_in_its_result(client: kvern.Client, engine: Engine) -> None:
    good = engine.sequence(destination_block_ids=TARGET)
    small = engine.sequence(
        sequence_id="two",
        block_ids=[15, 16, 17, 18],
        tokens=64,
        destination_block_ids=[19],
        policy=kvern.Policy(budget_tokens=40, scorer="key_norm"),
    )
    fine, refused = client.compress_sequences([good, small], HALF, model=MODEL)
    assert fine.error is None
    assert fine.kept_indices is None
    assert refused.outcome == "failed"
    assert refused.error is not None
    assert refused.error.reason == "DESTINATION_TOO_SMALL"


def test_epochs_and_replays(client: kvern.Client, engine: Engine) -> None:
    sequence = engine.sequence(destination_block_ids=TARGET, epoch=5)
    first, again = (
        client.compress_sequences([sequence], HALF, model=MODEL, request_id="step-1")[0]
        for _ in range(2)
    )
    assert first.epoch == again.epoch == 6
    (stale,) = client.compress_sequences([engine.sequence(epoch=4)], HALF, model=MODEL)
    assert stale.error is not None
    assert stale.error.reason == "EPOCH_MISMATCH"


def test_validate_only_and_indices_only(client: kvern.Client, engine: Engine) -> None:
    before = engine.planes.copy()
    (planned,) = client.compress_sequences(
        [engine.sequence(destination_block_ids=TARGET)], HALF, model=MODEL, validate_only=True
    )
    (listed,) = client.compress_sequences(
        [engine.sequence()], HALF, model=MODEL, placement="indices_only", with_kept=True
    )
    assert planned.kept_counts.tolist() == listed.kept_counts.tolist() == [[75, 75]] * 2
    assert listed.positions is not None
    assert np.array_equal(engine.planes, before)


def test_a_policy_of_one_sequence(client: kvern.Client, engine: Engine) -> None:
    own = engine.sequence(policy=kvern.Policy(budget_tokens=40, scorer="key_norm"))
    other = engine.sequence(sequence_id="two")
    results = client.compress_sequences([own, other], HALF, model=MODEL, placement="indices_only")
    assert [result.physical_tokens for result in results] == [40, 75]


def test_a_closed_pool_has_expired(client: kvern.Client) -> None:
    engine = Engine(client)
    with engine.pool:
        assert engine.pool.name in client.list_pools()
    for _ in range(1000):  # the server notices the closed connection a moment later
        if engine.pool.name not in client.list_pools():
            break
    (result,) = client.compress_sequences([engine.sequence()], HALF, model=MODEL)
    assert result.error is not None
    assert result.error.reason == "POOL_EXPIRED"


def refusal(call: Callable[[], object]) -> kvern.KvernError:
    with pytest.raises(kvern.KvernError) as caught:
        call()
    return caught.value


def test_refusals(client: kvern.Client, engine: Engine, server: Server) -> None:
    one = [engine.sequence()]
    assert refusal(lambda: client.compress_sequences(one, HALF)).field == "model"
    bad = refusal(lambda: client.compress_sequences(one, HALF, model=MODEL, placement="moon"))
    assert bad.field == "placement"
    share = kvern.Policy(budget_bytes="25%", scorer="key_norm")
    unknown = refusal(lambda: client.compress_sequences(one, share, model=MODEL))
    assert unknown.field == "policy.budget_bytes"
    memory = engine.memory
    outside = np.zeros((1, 2, 16, 64), np.float16)
    assert refusal(lambda: kvern.PoolLayer.of(memory, 0, outside, outside)).field == "k"
    flat = engine.planes[0, 0, 0]
    assert refusal(lambda: kvern.PoolLayer.of(memory, 0, flat, flat)).field == "k"
    view = kvern.View(1 << 40, 1, 1, 1, 1)
    layers = [kvern.PoolLayer(0, view, view)]
    for field, spec in [
        ("dtype", kvern.PoolSpec("f8", 16, 1, layers)),
        ("max_shape_class", kvern.PoolSpec("f16", 16, 1, layers, max_shape_class="S9")),
        ("pool.layers[0]", kvern.PoolSpec("f16", 16, 1, layers)),
    ]:
        error = refusal(lambda spec=spec: client.register_pool(memory, spec, model=MODEL))  # type: ignore[misc]
        assert error.field.startswith(field)
    with kvern.Client(server.tcp_address, model=MODEL) as remote:
        error = refusal(lambda: remote.register_pool(memory, engine.pool.spec))
        assert error.reason == "BROKER_MISSING"


def test_memory_that_the_kernel_refuses() -> None:
    assert refusal(lambda: kvern.SealedMemory(1 << 62)).code == "RESOURCE_EXHAUSTED"
    assert refusal(lambda: kvern.SealedMemory(-1)).code == "RESOURCE_EXHAUSTED"
