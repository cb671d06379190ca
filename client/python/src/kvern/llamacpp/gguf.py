"""What Kvern must know of a model, read from the head of its GGUF file instead of guessed.

Keys and tensors as in ggml's docs/gguf.md; which pairs of a head RoPE turns as in
llama_model_rope_type() of llama.cpp: neighbours (its NORM) or halves (its NEOX).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvern.errors import KvernError
from kvern.llamacpp.byte_reader import ByteReader
from kvern.llamacpp.refusal import malformed, unsupported
from kvern.models import ModelSpec, Rope

# By general.architecture. Conversion to GGUF reorders the keys of llama, not those of the others.
ROPE_LAYOUTS = {
    "gemma": "half",
    "llama": "interleaved",
    "phi2": "half",
    "phi3": "half",
    "qwen2": "half",
    "qwen3": "half",
}
_MAGIC = 0x46554747
_STRING, _ARRAY = 8, 9
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_F32 = 0
_FREQUENCIES = "rope_freqs.weight"
_SHIFTING_FREQUENCIES = ("rope_factors_long.weight", "rope_factors_short.weight")


@dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    offset: int


def model_spec(path: str | Path) -> ModelSpec:
    """Geometry and RoPE of the model in a GGUF file.

    Errors: UNIMPLEMENTED for architectures, scalings of RoPE and files that are not supported, the
    message lists what is; INVALID_ARGUMENT for a file that is damaged or cannot be read.
    """
    return read(_map(Path(path)), Path(path).name)


def read(data: Any, name: str) -> ModelSpec:
    """As model_spec, of the bytes of a file of that name."""
    reader = ByteReader(name, data)
    words, tensors = _read_head(reader)
    kind = words.get("general.architecture")
    if kind not in ROPE_LAYOUTS:
        raise unsupported("general.architecture", f"'{kind}'", ", ".join(ROPE_LAYOUTS))
    own = {key.removeprefix(f"{kind}."): value for key, value in words.items()}
    if own.get("attention.sliding_window"):
        raise unsupported("attention.sliding_window", own["attention.sliding_window"], "none")
    q_heads = _positive(own, "attention.head_count")
    width = _positive(own, "embedding_length")
    head_dim = _positive(own, "attention.key_length", width // q_heads)
    if own.get("attention.value_length", head_dim) != head_dim:
        raise unsupported("attention.value_length", own["attention.value_length"], str(head_dim))
    rotary_dim = _positive(own, "rope.dimension_count", head_dim)
    if rotary_dim % 2 or rotary_dim > head_dim:
        raise malformed("rope.dimension_count", rotary_dim, f"an even number up to {head_dim}")
    return ModelSpec(
        num_layers=_positive(own, "block_count"),
        kv_heads=_positive(own, "attention.head_count_kv", q_heads),
        head_dim=head_dim,
        q_heads=q_heads,
        rope=Rope(
            inv_freq=_frequencies(reader, own, tensors, rotary_dim).tolist(),
            rotary_dim=rotary_dim,
            layout=ROPE_LAYOUTS[str(kind)],
        ),
        display_name=str(words.get("general.name", name)),
    )


def _map(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise KvernError(
            "INVALID_ARGUMENT",
            f"model: got '{path}' ({error}), want the GGUF file that the server has loaded",
            field="model",
        ) from error


def _read_head(reader: ByteReader) -> tuple[dict[str, Any], dict[str, _Tensor]]:
    """Metadata without arrays, except those of a few numbers; tensors with absolute offsets."""
    magic = reader.number("magic", "I")
    version = reader.number("version", "I")
    if magic != _MAGIC or version not in (2, 3):
        raise unsupported(
            reader.name, f"magic 0x{magic:08x}, version {version}", "GGUF, version 2 or 3"
        )
    tensor_count = reader.number("tensor_count", "Q")
    words: dict[str, Any] = {}
    # Entries take bytes, so a count beyond the file ends at its end.
    for _ in range(reader.number("metadata_kv_count", "Q")):
        key = _string(reader, "key")
        words[key] = _value(reader, key, reader.number(key, "I"))
    if words.get("split.count", 1) > 1:
        raise unsupported("split.count", words["split.count"], "a model in one file")
    listed: dict[str, _Tensor] = {}
    for _ in range(tensor_count):
        name = _string(reader, "tensor")
        dims = reader.number(name, "I")
        shape = struct.unpack(f"<{dims}Q", reader.take(name, 8 * dims))
        listed[name] = _Tensor(shape, reader.number(name, "I"), reader.number(name, "Q"))
    alignment = _positive(words, "general.alignment", 32)
    start = -(-reader.offset // alignment) * alignment
    at = {name: _Tensor(t.shape, t.kind, start + t.offset) for name, t in listed.items()}
    return words, at


def _string(reader: ByteReader, field: str) -> str:
    return bytes(reader.take(field, reader.number(field, "Q"))).decode("utf-8", "replace")


def _value(reader: ByteReader, key: str, kind: int) -> Any:
    """Arrays of numbers as a list; of strings their count, since nothing here needs the words."""
    if kind == _STRING:
        return _string(reader, key)
    if kind != _ARRAY:
        return reader.number(key, _number(key, kind))
    element, count = reader.number(key, "I"), reader.number(key, "Q")
    if element == _STRING:
        for _ in range(count):
            reader.take(key, reader.number(key, "Q"))
        return count
    form = "<" + _number(key, element)
    data = reader.take(key, count * struct.calcsize(form))
    return [value for (value,) in struct.iter_unpack(form, data)]


def _number(key: str, kind: int) -> str:
    if kind not in _NUMBERS:
        raise unsupported(key, f"value type {kind}", "a number, a string or an array of them")
    return _NUMBERS[kind]


def _positive(words: Mapping[str, Any], key: str, otherwise: int | None = None) -> int:
    value = words.get(key, otherwise)
    if isinstance(value, list) and value and value == value[:1] * len(value):
        value = value[0]
    if isinstance(value, list):
        raise unsupported(key, "several values", "the same in every layer")
    if not isinstance(value, int) or value < 1:
        raise malformed(key, value, "1 or more")
    return value


def _frequencies(
    reader: ByteReader, own: Mapping[str, Any], tensors: Mapping[str, _Tensor], rotary_dim: int
) -> Any:
    """Radians per token of each band, f64 [rotary_dim / 2]."""
    theta = float(own.get("rope.freq_base", 10000.0))
    if not 0 < theta < 1e30:
        raise malformed("rope.freq_base", theta, "a number above 0")
    bands = theta ** (-np.arange(0, rotary_dim, 2) / rotary_dim)
    for name in _SHIFTING_FREQUENCIES:
        if name in tensors:
            raise unsupported("tensors", name, "frequencies that do not change with the length")
    kind = own.get("rope.scaling.type", "none")
    if kind not in ("none", "linear"):
        raise unsupported("rope.scaling.type", f"'{kind}'", "none or linear")
    scale = own.get("rope.scaling.factor", 1.0) if kind == "linear" else 1.0
    scale = own.get("rope.scale_linear", scale)
    if not isinstance(scale, float) or not 0 < scale < 1e9:
        raise malformed("rope.scaling.factor", scale, "a number above 0")
    if _FREQUENCIES not in tensors:
        return bands / scale
    tensor = tensors[_FREQUENCIES]
    if tensor.kind != _F32 or tensor.shape != (bands.size,):
        raise unsupported(_FREQUENCIES, f"{tensor.shape}", f"f32 ({bands.size},)")
    reader.offset = tensor.offset
    factors = reader.floats(_FREQUENCIES, bands.size)
    if not ((factors > 0) & (factors < 1e9)).all():
        raise malformed(_FREQUENCIES, "other factors", "numbers above 0")
    return bands / scale / factors
