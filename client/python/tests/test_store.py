"""The server's store, models, calibrations and facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import REPOSITORY, ROPED, Cache, random_cache

import kvern

DATA = REPOSITORY / "tests" / "data"


def test_put_fetch_delete(client: kvern.Client, cache: Cache) -> None:
    k, v = cache
    positions = np.arange(10, 310, dtype=np.int32)
    inputs = kvern.Inputs(positions=positions, logical_tokens=400)
    stored = client.put_sequence("a.b-c", k, v, model=ROPED, inputs=inputs)
    assert (stored.name, stored.tokens, stored.logical_tokens) == ("sequences/a.b-c", 300, 400)
    assert stored.k_codec == "raw16"
    assert client.get_sequence("a.b-c") == stored
    assert [other.name for other in client.list_sequences()] == ["sequences/a.b-c"]
    fetched = client.fetch_sequence("a.b-c")
    assert np.array_equal(fetched.k, k)
    assert np.array_equal(fetched.v, v)
    assert np.array_equal(fetched.positions, positions)
    with pytest.raises(kvern.KvernError, match="ALREADY_EXISTS"):
        client.put_sequence("a.b-c", k, v, model=ROPED)
    client.delete_sequence("a.b-c")
    client.delete_sequence("a.b-c")
    assert client.list_sequences() == ()
    with pytest.raises(kvern.KvernError) as caught:
        client.fetch_sequence("a.b-c")
    assert caught.value.reason == "SEQUENCE_UNKNOWN"


def test_append(client: kvern.Client, cache: Cache) -> None:
    k, v = cache
    stored = client.put_sequence("grows", k[:, :, :200], v[:, :, :200], model=ROPED)
    longer = client.append_sequence("grows", k[:, :, 200:], v[:, :, 200:], epoch=stored.epoch)
    assert (longer.tokens, longer.epoch) == (300, stored.epoch + 1)
    assert np.array_equal(client.fetch_sequence("grows").k, k)
    with pytest.raises(kvern.KvernError) as caught:
        client.append_sequence("grows", k, v, epoch=stored.epoch)
    assert caught.value.reason == "EPOCH_MISMATCH"
    client.delete_sequence("grows")


def test_bf16_and_one_layer_through_the_store(client: kvern.Client) -> None:
    k, v = (plane.astype(ml_dtypes.bfloat16) for plane in random_cache(3, 100, 32))
    client.put_sequence("b", k, v)
    fetched = client.fetch_sequence("b")
    assert fetched.k.dtype == ml_dtypes.bfloat16
    assert np.array_equal(fetched.k[0], k)
    assert fetched.positions.tolist() == list(range(100))
    client.delete_sequence("b")


def test_compress_in_the_store(client: kvern.Client, cache: Cache) -> None:
    client.put_sequence("s", *cache, model=ROPED)
    (result,) = client.compress_sequences(
        [kvern.StoreSequence("s", "s")], "small", model=ROPED, with_kept=True
    )
    assert result.error is None
    assert result.stored_sequence == "sequences/s"
    want = client.compress(*cache, "small", model=ROPED)
    assert np.array_equal(result.kept_indices, want.kept_indices)  # type: ignore[arg-type]
    fetched = client.fetch_sequence("s")
    assert fetched.sequence.k_codec == "sfv3+rm"
    assert np.array_equal(fetched.k, want.k)
    assert np.array_equal(fetched.positions, want.positions)
    packed = client.fetch_sequence("s", packed=True)
    assert packed.k is None
    assert packed.packed is not None
    assert packed.packed.blocks.nbytes < want.bytes_after
    client.delete_sequence("s")


def test_compress_leaves_nothing_in_the_store(client: kvern.Client, cache: Cache) -> None:
    for via in ("pool", "store"):
        client.compress(*cache, "balanced", model=ROPED, via=via)
        client.plan(*cache, "balanced", model=ROPED, via=via)
        with pytest.raises(kvern.KvernError):
            client.compress(*cache, "balanced", via=via)
    assert client.list_sequences() == ()


def test_models(client: kvern.Client) -> None:
    spec = kvern.ModelSpec(2, 4, 32, q_heads=8, rope=kvern.Rope(theta=1e4), display_name="mine")
    model = client.register_model(spec, "mine")
    assert model.name == "models/mine"
    assert client.register_model(spec, "mine") == model
    assert client.get_model("mine").spec.q_heads == 8
    assert "models/mine" in [known.name for known in client.list_models().models]
    with pytest.raises(kvern.KvernError, match="ALREADY_EXISTS"):
        client.register_model(kvern.ModelSpec(2, 4, 64), "mine")
    assert (
        client.compress(*random_cache(2, 4, 64, 32), "evict50", model="mine").outcome == "applied"
    )
    client.delete_model("mine")
    with pytest.raises(kvern.KvernError) as caught:
        client.get_model("mine")
    assert caught.value.reason == "MODEL_UNKNOWN"


def test_a_model_of_a_config() -> None:
    config: dict[str, Any] = {
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "hidden_size": 576,
        "rope_theta": 100000.0,
        "_name_or_path": "smol",
    }
    spec = kvern.ModelSpec.from_config(config)
    assert (spec.num_layers, spec.q_heads, spec.kv_heads, spec.head_dim) == (30, 9, 3, 64)
    assert spec.rope is not None
    file = kvern.CacheFile.open(DATA / "pride-1024.safetensors")
    assert file.model.rope is not None
    assert np.allclose(spec.rope.inv_freq, file.model.rope.inv_freq, rtol=1e-6)
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    scaled = kvern.ModelSpec.from_config(config | {"rope_scaling": llama3}).rope
    assert scaled is not None
    # The shortest wavelengths stay, the longest are stretched by the factor.
    assert scaled.inv_freq[0] == spec.rope.inv_freq[0]
    assert scaled.inv_freq[-1] == spec.rope.inv_freq[-1] / 8
    linear = {"type": "linear", "factor": 2.0}
    halved = kvern.ModelSpec.from_config(config | {"rope_scaling": linear}).rope
    assert halved is not None
    assert halved.inv_freq[3] == spec.rope.inv_freq[3] / 2
    cases: list[tuple[str, dict[str, Any]]] = [
        ("config.num_hidden_layers", {"num_hidden_layers": None}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("rope_scaling", {"rope_scaling": {"rope_type": "linear"}}),
    ]
    for field, broken in cases:
        with pytest.raises(kvern.KvernError) as caught:
            kvern.ModelSpec.from_config(config | broken)
        assert caught.value.field == field


def test_calibrations(client: kvern.Client) -> None:
    path = DATA / "qwen-calibration.safetensors"
    first = client.import_calibration(path)
    assert first.format == "kvern-calibration/1"
    assert first.size_bytes > 0
    assert client.import_calibration(path.read_bytes()) == first
    assert first in client.list_models().calibrations
    with pytest.raises(kvern.KvernError, match="INVALID_ARGUMENT"):
        client.import_calibration(b"no safetensors")
    with pytest.raises(kvern.KvernError, match="NOT_FOUND"):
        client.import_calibration("/nonexistent")


def test_info_and_stages(client: kvern.Client) -> None:
    info = client.info()
    assert info.version == kvern.__version__
    assert info.backend in ("ref", "cpu", "cuda")
    assert info.limits["inline-bytes"] == 16 << 20
    stages = client.list_stages()
    assert {stage.kind for stage in stages.stages} == {"budgeter", "scorer", "selector", "codec"}
    snapkv = next(stage for stage in stages.stages if stage.name == "snapkv")
    assert snapkv.inputs == ("q_window",)
    assert [param.default for param in snapkv.params if param.name == "window"] == ["32"]
    assert {"balanced", "small", "tiny", "safe", "evict50"} <= {p.name for p in stages.presets}


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(kvern.KvernError) as caught:
        kvern.CacheFile.open(path)
    assert caught.value.reason == "FILE_CONTENT"
    with pytest.raises(kvern.KvernError, match="NOT_FOUND"):
        kvern.CacheFile.open(tmp_path / "absent")
