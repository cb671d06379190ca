"""The statistics that TriAttention's authors publish (.pt), as a calibration of Kvern."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kvern.calibrate.artifact import Centres, Floats
from kvern.errors import KvernError

_HEAD = re.compile(r"layer(\d{2,})_head(\d{2,})")
_PARTS = ("q_mean_real", "q_mean_imag", "q_abs_mean")
_CARRIED = ("model_name", "model_path", "rope_type", "rope_theta", "num_kv_heads")


@dataclass(frozen=True)
class Published:
    """centres: of every layer and query head. head_dim, rope_layout: as the file says."""

    centres: Centres
    head_dim: int
    rope_layout: str
    metadata: dict[str, str]


def load_published(path: str | Path) -> Published:
    """Tensors only are unpickled, never code.

    Errors: INVALID_ARGUMENT for another schema, missing heads (a subset of them cannot score all
    layers), unequal shapes, values that are not finite, an absolute mean below the mean's absolute.
    """
    try:
        whole = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of the unpickler: its kinds are not documented
        raise _invalid(f"{path}: not a file of tensors: {error}") from error
    if not isinstance(whole, dict) or not {"metadata", "stats"} <= set(whole):
        raise _invalid(f"{path}: want a dict with 'metadata' and 'stats'")
    about, stats = whole["metadata"], whole["stats"]
    head_dim, layout = about.get("head_dim"), about.get("rope_style", "half")
    if not isinstance(head_dim, int) or layout not in ("half", "interleaved"):
        raise _invalid(f"metadata: got head_dim {head_dim!r} and rope_style {layout!r}")
    centres = _centres(stats, head_dim // 2)
    centres.check()
    layers, q_heads, _ = centres.mean_re.shape
    metadata = {key: str(about[key]) for key in _CARRIED if key in about}
    metadata |= {"num_layers": str(layers), "q_heads": str(q_heads), "head_dim": str(head_dim)}
    metadata |= {"rope_layout": layout, "source": f"{Path(path).name}, TriAttention's statistics"}
    return Published(centres, head_dim, layout, metadata)


def _centres(stats: Mapping[str, Any], bands: int) -> Centres:
    heads = {}
    for key, entry in stats.items():
        match = _HEAD.fullmatch(key)
        if match is None:
            raise _invalid(f"stats: got key '{key}', want layerLL_headHH")
        heads[int(match[1]), int(match[2])] = [_row(key, entry, name, bands) for name in _PARTS]
    layers, q_heads = (1 + max((key[axis] for key in heads), default=-1) for axis in (0, 1))
    missing = [
        f"layer {layer}, head {head}"
        for layer in range(layers)
        for head in range(q_heads)
        if (layer, head) not in heads
    ]
    if missing or not heads:
        raise _invalid(f"stats: {len(missing)} heads are missing: {'; '.join(missing[:3])}")
    planes = [
        np.stack([[heads[layer, head][part] for head in range(q_heads)] for layer in range(layers)])
        for part in range(len(_PARTS))
    ]
    return Centres(*planes)


def _row(key: str, entry: Mapping[str, Any], name: str, bands: int) -> Floats:
    value = entry.get(name)
    if not isinstance(value, torch.Tensor) or value.shape != (bands,):
        shape = tuple(value.shape) if isinstance(value, torch.Tensor) else value
        raise _invalid(f"stats: {key}.{name}: got {shape}, want [{bands}]")
    row: Floats = value.float().numpy()
    return row


def _invalid(message: str) -> KvernError:
    return KvernError("INVALID_ARGUMENT", message, field="from_pt")
