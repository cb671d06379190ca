"""torch tensors in and out, over the same memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import ROPED, Server, random_cache

import kvern

torch = pytest.importorskip("torch")
EVICT = kvern.Policy(keep_ratio=0.5, scorer="key_norm")


def tensors(dtype: Any) -> tuple[Any, Any]:
    k, v = random_cache(4, 2, 300, 64)
    return torch.from_numpy(k).to(dtype), torch.from_numpy(v).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("via", ["pool", "inline", "store"])
def test_kept_tokens_are_the_source(client: kvern.Client, dtype: Any, via: str) -> None:
    k, v = tensors(dtype)
    result = client.compress(k, v, EVICT, via=via)
    assert isinstance(result.k, torch.Tensor)
    assert result.k.dtype is dtype
    index = torch.from_numpy(result.kept_indices.astype(np.int64))[..., None].expand(4, 2, 150, 64)
    assert torch.equal(result.k, k.gather(2, index))
    assert torch.equal(result.v, v.gather(2, index))


def test_results_are_views_of_shared_memory(client: kvern.Client) -> None:
    k, v = tensors(torch.bfloat16)
    result = client.compress(k, v, EVICT)
    assert result.shared
    kept = result.k
    want = kept.clone()
    del result
    for _ in range(3):
        client.compress(v, k, EVICT)
    assert torch.equal(kept, want)


def test_codecs_decode_to_torch(client: kvern.Client) -> None:
    k, v = tensors(torch.bfloat16)
    result = client.compress(k, v, "balanced", model=ROPED)
    assert result.k.dtype is torch.bfloat16
    index = torch.from_numpy(result.kept_indices.astype(np.int64))[..., None]
    want = k.gather(2, index.expand(*result.k.shape)).float()
    assert ((result.k.float() - want).norm() / want.norm()) < 0.15


def test_new_cache_in_torch(client: kvern.Client) -> None:
    for dtype, name in [(torch.bfloat16, "bf16"), (torch.float32, "f32")]:
        k, v = client.new_cache((4, 2, 300, 64), name, kind="torch")
        assert k.dtype is dtype
        source = tensors(dtype)
        k.copy_(source[0])
        v.copy_(source[1])
        in_place = client.compress(k, v, EVICT)
        assert torch.equal(in_place.k, client.compress(*source, EVICT).k)


def test_layers_apart_side_tensors_and_gradients(client: kvern.Client) -> None:
    k, v = tensors(torch.float32)
    k.requires_grad_(True)
    mass = torch.zeros(4, 2, 300)
    mass[:, :, 50:90] = 1
    policy = kvern.Policy(
        budget_tokens=44, scorer="attention_mass:per_visible=false", recent=0, recent_share=0.0
    )
    inputs = kvern.Inputs(attention_mass=mass, positions=torch.arange(300))
    layers: list[Any] = list(k)
    result: kvern.CompressResult[Any] = client.compress(layers, list(v), policy, inputs=inputs)
    assert result.kept_indices[1, 1].tolist() == [0, 1, 2, 3, *range(50, 90)]
    assert not result.k.requires_grad


def test_any_strides(client: kvern.Client) -> None:
    k, v = tensors(torch.bfloat16)
    want = client.compress(k, v, EVICT).k
    k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v))
    assert not k.is_contiguous()
    assert torch.equal(client.compress(k, v, EVICT).k, want)


def test_from_the_store(client: kvern.Client) -> None:
    k, v = tensors(torch.bfloat16)
    client.put_sequence("torch", k, v)
    fetched = client.fetch_sequence("torch", kind="torch")
    assert torch.equal(fetched.k, k)
    client.delete_sequence("torch")


def test_refusals(server: Server, client: kvern.Client) -> None:
    k, v = tensors(torch.float64)
    with pytest.raises(kvern.KvernError) as caught:
        client.compress(k, v, EVICT)
    assert caught.value.reason == "DTYPE_UNKNOWN"
    k, v = torch.empty(2, 1, 3, 8, device="meta"), torch.empty(2, 1, 3, 8, device="meta")
    with pytest.raises(kvern.KvernError) as caught:
        client.compress(k, v, EVICT)
    assert caught.value.reason == "DEVICE_MEMORY"
    assert "cpu()" in caught.value.next_step


def test_a_pool_over_torch_memory(client: kvern.Client) -> None:
    memory = kvern.SealedMemory(1 << 18)
    shape = (2, 8, 2, 16, 64)
    storage = torch.from_numpy(memory.bytes).view(torch.bfloat16)[: int(np.prod(shape))]
    planes = storage.view(shape)
    assert planes.data_ptr() == memory.address
    layers = [kvern.PoolLayer.of(memory, 0, planes[0], planes[1])]
    spec = kvern.PoolSpec("bf16", 16, 8, layers)
    with client.register_pool(memory, spec, model=kvern.ModelSpec(1, 2, 64)) as pool:
        k, v = (torch.from_numpy(plane).to(torch.bfloat16) for plane in random_cache(2, 64, 64))
        for plane, dense in zip(planes, (k, v), strict=True):
            plane[:4].copy_(dense.view(2, 4, 16, 64).transpose(0, 1))
        (result,) = client.compress_sequences(
            [kvern.PagedSequence("t", pool, [0, 1, 2, 3], 64, destination_block_ids=[5, 6])],
            kvern.Policy(budget_tokens=32, scorer="key_norm"),
            model=kvern.ModelSpec(1, 2, 64),
            with_kept=True,
        )
        assert result.error is None
        assert result.kept_indices is not None
        kept = planes[0, 5:7].transpose(0, 1).reshape(2, 32, 64)
        index = torch.from_numpy(result.kept_indices[0].astype(np.int64))[..., None]
        assert torch.equal(kept, k.gather(1, index.expand(2, 32, 64)))
    client.release_sequences(["t"])
