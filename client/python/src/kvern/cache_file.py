"""Cache files, `kvern-cache/1`: safetensors with k, v and what belongs to them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvern.arrays import Raw, numpy_result
from kvern.errors import KvernError
from kvern.models import ModelSpec, Rope, inverse_frequencies
from kvern.request import Inputs

_DTYPES = {
    "BF16": "<u2",
    "F16": "<f2",
    "F32": "<f4",
    "I32": "<i4",
    "I64": "<i8",
    "U8": "|u1",
}


@dataclass(frozen=True, eq=False)
class Safetensors:
    """A file's tensors, mapped read-only, and its metadata. bf16 comes as ml_dtypes.bfloat16 where
    that is installed, else as uint16."""

    tensors: dict[str, NDArray[Any]] = field(repr=False)
    metadata: dict[str, str]

    @staticmethod
    def open(path: str | Path) -> Safetensors:
        """Errors: NOT_FOUND; INVALID_ARGUMENT/FILE_CONTENT naming the tensor."""
        try:
            raw = np.memmap(path, np.uint8, "r")
        except FileNotFoundError as error:
            raise KvernError("NOT_FOUND", f"'{path}': {error.strerror}") from error
        except (OSError, ValueError) as error:
            raise _content(path, str(error)) from error
        try:
            (size,) = struct.unpack("<Q", raw[:8].tobytes())
            header = json.loads(raw[8 : 8 + size].tobytes())
            if not isinstance(header, dict):
                raise ValueError("its JSON is no object")
            metadata = header.pop("__metadata__", {})
            body = raw[8 + size :]
        except (struct.error, ValueError, MemoryError, OverflowError) as error:
            raise _content(path, f"no safetensors header: {error}") from error
        tensors = {name: _tensor(path, name, entry, body) for name, entry in header.items()}
        return Safetensors(tensors, metadata)


@dataclass(frozen=True, eq=False)
class CacheFile:
    """A cache file: ``client.compress(cache.k, cache.v, model=cache.model, inputs=cache.inputs)``.

    k, v: [layers, kv_heads, tokens, head_dim]. model: geometry and RoPE that the file describes.
    inputs: its positions and side tensors.
    """

    k: NDArray[Any] = field(repr=False)
    v: NDArray[Any] = field(repr=False)
    model: ModelSpec = field(repr=False)
    inputs: Inputs = field(repr=False)
    metadata: dict[str, str]

    @staticmethod
    def open(path: str | Path) -> CacheFile:
        """Errors: NOT_FOUND; INVALID_ARGUMENT/FILE_CONTENT naming the tensor or key."""
        file = Safetensors.open(path)
        tensors, metadata = file.tensors, file.metadata
        for name in ("k", "v"):
            if name not in tensors or tensors[name].ndim != 4:
                raise _content(path, f"'{name}': want [layers, kv_heads, tokens, head_dim]")
        layers = tensors.get("layer_indices", np.empty(0, np.int32))
        inputs = Inputs(
            positions=tensors.get("positions"),
            logical_tokens=int(metadata.get("logical_tokens") or 0),
            layer_indices=[int(layer) for layer in layers],
            q_window=tensors.get("q_window"),
            attention_mass=tensors.get("attention_mass"),
            external_scores=tensors.get("external_scores"),
        )
        return CacheFile(tensors["k"], tensors["v"], _model(file), inputs, metadata)


def _model(file: Safetensors) -> ModelSpec:
    """As `kvern` itself reads it: what metadata does not say comes from the tensors."""
    metadata, tensors = file.metadata, file.tensors
    layers, kv_heads, _, head_dim = tensors["k"].shape
    present = [int(layer) for layer in tensors.get("layer_indices", ())]
    window = tensors.get("q_window")
    theta = float(metadata.get("rope_theta", "") or 0)
    rope = None
    frequencies: tuple[float, ...] = ()
    if "inv_freq" in tensors:
        frequencies = tuple(float(band) for band in tensors["inv_freq"])
    elif theta > 0:
        frequencies = inverse_frequencies(theta, head_dim, metadata.get("rope_scaling"))
    if frequencies:
        rope = Rope(
            theta=theta,
            inv_freq=frequencies,
            rotary_dim=2 * len(frequencies),
            layout=metadata.get("rope_layout") or "half",
            attention_scaling=float(metadata.get("rope_attention_scaling", "") or 1),
        )
    q_heads = kv_heads if window is None else window.shape[1]
    num_layers = max([layers, *(layer + 1 for layer in present)])
    return ModelSpec(
        num_layers=int(metadata.get("num_layers") or num_layers),
        kv_heads=kv_heads,
        head_dim=head_dim,
        q_heads=int(metadata.get("q_heads") or q_heads),
        rope=rope,
        display_name=metadata.get("model", ""),
    )


def _tensor(path: str | Path, name: str, entry: Any, body: Raw) -> NDArray[Any]:
    try:
        dtype, shape = np.dtype(_DTYPES[entry["dtype"]]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if not 0 <= begin <= end <= len(body):
            raise ValueError(f"bytes {begin}..{end} of {len(body)}")
        raw = body[begin:end].view(dtype).reshape(shape)
    except (KeyError, TypeError, ValueError) as error:
        raise _content(path, f"'{name}': {error}") from error
    return numpy_result(raw, "bf16") if entry["dtype"] == "BF16" else raw


def _content(path: str | Path, why: str) -> KvernError:
    return KvernError("INVALID_ARGUMENT", f"'{path}': {why}", reason="FILE_CONTENT")
