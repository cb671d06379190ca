"""What is read of GGUF files, and which models are refused."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvern
from kvern.llamacpp import gguf

LLAMA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.tokens": ["a", "bc", ""],
    "tokenizer.ggml.scores": [0.5, 1.5, 2.5],
}
FREQUENCIES = (10000.0 ** (-np.arange(32) / 32)).tolist()


def packed(value: Any) -> tuple[int, bytes]:
    """(type, bytes)"""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, int):
        return 4, struct.pack("<I", value)
    if isinstance(value, float):
        return 6, struct.pack("<f", value)
    if isinstance(value, str):
        data = value.encode()
        return 8, struct.pack("<Q", len(data)) + data
    items = [packed(item) for item in value]
    head = struct.pack("<IQ", items[0][0], len(items))
    return 9, head + b"".join(data for _, data in items)


def pack(words: dict[str, Any], tensors: dict[str, np.ndarray[Any, Any]] | None = None) -> bytes:
    tensors = tensors or {"token_embd.weight": np.zeros((4, 8), np.float32)}
    out = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(words))
    for key, value in words.items():
        kind, data = packed(value)
        out += packed(key)[1] + struct.pack("<I", kind) + data
    blob = b""
    for name, values in tensors.items():
        shape = values.shape[::-1]
        out += packed(name)[1] + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        out += struct.pack("<IQ", 0 if values.dtype == np.float32 else 1, len(blob))
        blob += values.tobytes() + bytes(-values.nbytes % 32)
    return out + bytes(-len(out) % 32) + blob


def read(data: bytes) -> kvern.ModelSpec:
    return gguf.read(data, "model.gguf")


def test_a_llama() -> None:
    spec = read(pack(LLAMA))
    assert (spec.num_layers, spec.q_heads, spec.kv_heads, spec.head_dim) == (2, 4, 2, 64)
    assert spec.display_name == "tiny"
    assert spec.rope is not None
    assert (spec.rope.layout, spec.rope.rotary_dim) == ("interleaved", 64)
    np.testing.assert_allclose(spec.rope.inv_freq, FREQUENCIES)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gemma", "phi2", "phi3"])
def test_the_others_turn_halves(kind: str) -> None:
    words = {key.replace("llama.", f"{kind}."): value for key, value in LLAMA.items()}
    words |= {"general.architecture": kind, f"{kind}.rope.dimension_count": 32}
    spec = read(pack(words))
    assert spec.rope is not None
    assert (spec.rope.layout, spec.rope.rotary_dim, len(spec.rope.inv_freq)) == ("half", 32, 16)


def test_scaled_frequencies() -> None:
    words = LLAMA | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    tensors = {"a.weight": np.zeros(5, np.float32), "rope_freqs.weight": factors}
    spec = read(pack(words, tensors))
    assert spec.rope is not None
    np.testing.assert_allclose(spec.rope.inv_freq, np.array(FREQUENCIES) / 4 / factors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "gemma2"}, "architecture: got 'gemma2', want gemma, llama"),
        ({"general.architecture": "deepseek2"}, "want gemma, llama, phi2, phi3, qwen2, qwen3"),
        ({"llama.attention.sliding_window": 4096}, "sliding_window: got 4096, want none"),
        ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type: got 'yarn', want none or linear"),
        ({"llama.attention.value_length": 32}, "value_length: got 32, want 64"),
        ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv: got several values"),
        ({"llama.block_count": 0}, "block_count: got 0, want 1 or more"),
        ({"llama.block_count": "two"}, "block_count: got two"),
        ({"llama.rope.dimension_count": 66}, "dimension_count: got 66, want an even number up to"),
        ({"llama.rope.freq_base": -1.0}, "freq_base: got -1.0, want a number above 0"),
        ({"llama.rope.scale_linear": float("nan")}, "factor: got nan"),
        ({"split.count": 2}, "split.count: got 2, want a model in one file"),
    ],
)
def test_models_that_are_not_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(kvern.KvernError, match=message):
        read(pack(LLAMA | changes))


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("rope_factors_long.weight", np.ones(32, np.float32), "that do not change with the length"),
        ("rope_freqs.weight", np.ones(31, np.float32), "want f32"),
        ("rope_freqs.weight", np.ones(32, np.float16), "want f32"),
        ("rope_freqs.weight", np.zeros(32, np.float32), "want numbers above 0"),
    ],
)
def test_frequencies_that_are_not_supported(
    name: str, values: np.ndarray[Any, Any], message: str
) -> None:
    with pytest.raises(kvern.KvernError, match=message):
        read(pack(LLAMA, {name: values}))


def test_equal_heads_in_every_layer() -> None:
    spec = read(pack(LLAMA | {"llama.attention.head_count_kv": [2, 2]}))
    assert spec.kv_heads == 2


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(kvern.KvernError, match="want the GGUF file that the server"):
            gguf.model_spec(path)
    (tmp_path / "empty").touch()
    with pytest.raises(kvern.KvernError, match="want the GGUF file"):
        gguf.model_spec(tmp_path / "empty")
    (tmp_path / "model.gguf").write_bytes(pack(LLAMA))
    assert gguf.model_spec(tmp_path / "model.gguf") == read(pack(LLAMA))
    with pytest.raises(kvern.KvernError, match="want GGUF, version 2 or 3"):
        read(b"GGUF" + struct.pack("<I", 4) + bytes(64))


def test_every_cut_of_the_head_is_refused() -> None:
    data = pack(LLAMA, {"rope_freqs.weight": np.ones(32, np.float32)})
    for size in range(1, len(data)):
        with pytest.raises(kvern.KvernError, match="want"):
            read(data[:size])


def test_mutated_files_end_in_a_spec_or_an_error() -> None:
    data = pack(LLAMA, {"rope_freqs.weight": np.ones(32, np.float32)})
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(1500):
        mutated = bytearray(data)
        at = int(random.integers(len(data) - 128))
        mutated[at : at + 4] = random.choice(
            [b"\0" * 4, b"\xff" * 4, b"\0\0\0\x80", random.bytes(4)]
        )
        try:
            spec = read(bytes(mutated))
        except kvern.KvernError:
            refused += 1
        else:
            assert spec.num_layers > 0
            assert spec.rope is not None
    assert 300 < refused < 1500
