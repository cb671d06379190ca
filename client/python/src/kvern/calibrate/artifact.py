"""Files of calibration: kvern-calibration/1 and kvern-query-moments/1, the same bytes each time."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvern.errors import KvernError

Floats = NDArray[np.float32]
CENTRES_FORMAT = "kvern-calibration/1"
MOMENTS_FORMAT = "kvern-query-moments/1"
_SLACK = 1e-6  # of mean and mean of absolutes, each rounded


@dataclass(frozen=True, eq=False)
class Centres:
    """Queries before RoPE, per band of two dims: mean_re, mean_im, abs_mean, f32
    [num_layers, q_heads, bands]; layer_sensitivity f32 [num_layers] or None."""

    mean_re: Floats = field(repr=False)
    mean_im: Floats = field(repr=False)
    abs_mean: Floats = field(repr=False)
    layer_sensitivity: Floats | None = None

    def check(self) -> None:
        """What the server will check too. Errors: INVALID_ARGUMENT naming layer and head."""
        parts = (self.mean_re, self.mean_im, self.abs_mean)
        for name, part in zip(("q_mean_re", "q_mean_im", "q_abs_mean"), parts, strict=True):
            if part.ndim != 3 or part.shape != self.mean_re.shape:
                raise _invalid(f"{name}: got shape {part.shape}, want {self.mean_re.shape}")
            _refuse(name, ~np.isfinite(part), "a value that is not finite")
        low = self.abs_mean < np.hypot(*(part.astype(np.float64) for part in parts[:2])) * (
            1 - _SLACK
        )
        _refuse("q_abs_mean", low, "less than |q_mean|")

    def save(self, path: str | Path, metadata: Mapping[str, str], inv_freq: Floats) -> None:
        self.check()
        tensors = {
            "inv_freq": inv_freq,
            "q_mean_re": self.mean_re,
            "q_mean_im": self.mean_im,
            "q_abs_mean": self.abs_mean,
        }
        if self.layer_sensitivity is not None:
            tensors["layer_sensitivity"] = self.layer_sensitivity
        Path(path).write_bytes(pack(tensors, {**metadata, "format": CENTRES_FORMAT}))


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean f32 [num_layers, q_heads, head_dim] and covariance f32
    [num_layers, q_heads, head_dim, head_dim] of queries before RoPE."""

    mean: Floats = field(repr=False)
    cov: Floats = field(repr=False)

    def save(self, path: str | Path, metadata: Mapping[str, str], inv_freq: Floats) -> None:
        tensors = {"inv_freq": inv_freq, "q_mean": self.mean, "q_cov": self.cov}
        Path(path).write_bytes(pack(tensors, {**metadata, "format": MOMENTS_FORMAT}))


def pack(tensors: Mapping[str, Floats], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file of f32 tensors, keys sorted: other writers order metadata by chance."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    body = b""
    for name in sorted(tensors):
        data = np.ascontiguousarray(tensors[name], "<f4").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": tensors[name].shape, "data_offsets": offsets}
        body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _refuse(name: str, bad: NDArray[np.bool_], what: str) -> None:
    if bad.any():
        layer, head, band = (int(axis[0]) for axis in np.nonzero(bad))
        raise _invalid(f"{name}: got {what} in layer {layer}, head {head}, band {band}")


def _invalid(message: str) -> KvernError:
    return KvernError("INVALID_ARGUMENT", message, field=message.partition(":")[0])
